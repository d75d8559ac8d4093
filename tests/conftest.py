"""What tests of more than one part share: a real Slurm, started once."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster, default_folder, stop_abandoned
from tests.cluster.packages import CannotInstall


def started(cluster: Cluster) -> Cluster:
    """Starts a cluster; skips the test where Slurm cannot be installed, or fails it if FLUENCE_REQUIRE_SLURM=1."""
    try:
        cluster.start()
    except CannotInstall as error:
        if os.environ.get("FLUENCE_REQUIRE_SLURM") == "1":
            pytest.fail(f"FLUENCE_REQUIRE_SLURM=1, but {error}")
        pytest.skip(f"no Slurm here: {error}")
    return cluster


@pytest.fixture(scope="session")
def slurm_session() -> Iterator[Cluster]:
    """The test cluster of this session, or with FLUENCE_KEEP_CLUSTER=1 the one of `make cluster`, which stays."""
    if os.environ.get("FLUENCE_KEEP_CLUSTER") == "1":
        yield started(Cluster(default_folder()))
        return
    stop_abandoned()
    cluster = started(Cluster(default_folder().with_name(f"{default_folder().name}-{os.getpid()}")))
    yield cluster
    cluster.stop()


@pytest.fixture
def slurm_cluster(slurm_session: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The test cluster, whole and empty; Slurm's commands speak with it. Jobs that are left over are cancelled."""
    slurm_session.heal()
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name, value in slurm_session.environment.items():
        monkeypatch.setenv(name, value)
    yield slurm_session
    slurm_session.cancel_all()
