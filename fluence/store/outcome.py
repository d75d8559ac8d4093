"""How a task ended, and what made its result: the done marker and the provenance record in one."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fluence import __version__
from fluence.errors import ArtifactError
from fluence.store.files import read_json, write_json

FORMAT = 1
COMMIT = "COMMIT"  # file beside a copy of the code: where it was copied from
Status = Literal["done", "skipped", "failed", "diverged"]
_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "scipy",
    "pandas",
    "scikit-learn",
    "statsmodels",
    "h5py",
    "pillow",
)


@dataclass(frozen=True)
class Outcome:
    """The end of one task.

    Attributes:
        status: `done`, or why there is no result.
        key: hash of everything that determines the result; another key means another result.
        reason: for people; empty when the task is done and there is nothing to say.
        section: the part of the study that the task saw.
        provenance: where, when and with what it was made.
    """

    status: Status
    key: str
    reason: str = ""
    section: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Writes the outcome of a task, atomically."""
    write_json(path, {"format": FORMAT, **asdict(outcome)})


def read_outcome(path: Path) -> Outcome | None:
    """Reads the outcome of a task; None if there is none that can be read (then the task has to run)."""
    try:
        record = read_json(path)
        if record.pop("format") != FORMAT:
            return None
        return Outcome(**record)
    except (ArtifactError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Progress:
    """How far an unfinished task has come.

    Attributes:
        fraction: 0 … 1.
        text: in words, such as `epoch 3 of 30`.
        updated: seconds since the epoch.
        facts: anything else, such as `loss`.
    """

    fraction: float
    text: str
    updated: float
    facts: dict[str, Any]


def read_progress(path: Path, key: str) -> Progress | None:
    """Reads the progress of the task with this key; None if it has not begun."""
    try:
        record = read_json(path)
        if record.pop("key") != key:
            return None
        return Progress(record.pop("fraction"), record.pop("text"), record.pop("updated"), record)
    except (ArtifactError, KeyError, AttributeError):
        return None


def provenance(started: float, inputs: dict[str, str]) -> dict[str, Any]:
    """Where, when and with what a result was made.

    Args:
        started: `time.time()` at the start of the task.
        inputs: name of each input and its key.
    """
    return {
        "fluence": __version__,
        "commit": code_commit(),
        "python": platform.python_version(),
        "packages": _versions(),
        "host": platform.node(),
        "slurm_job": os.environ.get("SLURM_JOB_ID", ""),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "seconds": round(time.time() - started, 1),
        "inputs": inputs,
    }


@cache
def code_commit() -> str:
    """The commit of the code that runs, `-dirty` if it was changed since, or `unknown` outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    if (folder / COMMIT).is_file():
        return (folder / COMMIT).read_text(encoding="utf-8").strip()
    if not (folder / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


@cache
def _versions() -> dict[str, str]:
    installed = {
        d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions() if d.metadata["Name"]
    }
    return {name: installed[name] for name in _PACKAGES if name in installed}


def write_progress(path: Path, key: str, fraction: float, text: str, **facts: Any) -> None:
    """Says how far a task has come, for `fluence status` and for the next start.

    Args:
        path: `Layout.progress(stage, name)`.
        key: the task's key.
        fraction: 0 … 1.
        text: in words, such as `epoch 3 of 30`.
        facts: anything else worth showing, such as `loss`.
    """
    content = {"key": key, "fraction": round(fraction, 4), "text": text, "updated": time.time(), **facts}
    write_json(path, content, durable=False)  # nobody is to wait for the disk because of it
