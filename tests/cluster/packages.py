"""The programs that the test cluster is made of, and how they come onto this machine."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = (
    "munge",
    "mariadb-server-core",
    "slurm-client",
    "slurm-wlm-mysql-plugin",
    "slurmctld",
    "slurmd",
    "slurmdbd",
)
PROGRAMS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
_POLICY = Path("/usr/sbin/policy-rc.d")


class CannotInstall(Exception):
    """Slurm is not on this machine and cannot be put there; says why and what to type."""


def program(name: str) -> str | None:
    """Path of a program; daemons live where the path of a plain user does not lead."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]))


def missing_programs() -> list[str]:
    """What the cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if program(name) is None]


def install() -> None:
    """Installs what is missing, without starting any service.

    Raises:
        CannotInstall: this is not Debian or Ubuntu, the user is not root, or apt-get failed.
    """
    missing = missing_programs()
    if not missing:
        return
    what = f"the test cluster needs {', '.join(missing)}"
    if program("apt-get") is None:
        raise CannotInstall(f"{what}; on a machine without apt-get, install Slurm, MariaDB and munge by hand")
    if os.geteuid() != 0:
        raise CannotInstall(f"{what}; type: sudo apt-get install {' '.join(PACKAGES)}")
    with _alone(), _no_services():
        if missing_programs():
            _apt_get("update")
            _apt_get("install", "--yes", "--no-install-recommends", *PACKAGES)
    if missing := missing_programs():
        raise CannotInstall(f"{', '.join(PACKAGES)} are installed, but {', '.join(missing)} are still missing")


def _apt_get(*arguments: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotInstall(f"`{' '.join(command)}` failed:\n{done.stderr.strip() or done.stdout.strip()}")


@contextmanager
def _alone() -> Iterator[None]:
    """Other processes that want to install, too, wait until this one is done."""
    with (Path(tempfile.gettempdir()) / "fluence-install.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _no_services() -> Iterator[None]:
    """Debian asks this file whether a package may start its service. One that is already there is left alone."""
    if _POLICY.exists():
        yield
        return
    _POLICY.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink(missing_ok=True)
