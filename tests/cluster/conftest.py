"""Sites, and studies that ran on the test cluster undisturbed: once for all tests of a session."""

from __future__ import annotations

import pytest

from jobs.sites import Site, load_site
from tests.cluster.cluster import Cluster
from tests.cluster.studies import ALL, FEW_EPOCHS, MANY_BLOCKS, OF_RUNS, TWO_SEEDS, Study, edited_site, run_undisturbed


@pytest.fixture(scope="session")
def site() -> Site:
    return load_site("test-cluster")


@pytest.fixture(scope="session")
def two_node_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The test cluster's, with one process on each of two nodes for each training, and a prologue as strict as many."""
    strict = "#FLUENCE billing-unit=GPU hours\n", "#FLUENCE billing-unit=GPU hours\nset -euo pipefail\n"
    return edited_site(tmp_path_factory.mktemp("site") / "two-nodes", "--nodes=1", "--nodes=2", *strict)


@pytest.fixture(scope="session")
def site_without_requeue(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site") / "no-requeue"
    return edited_site(folder, "#SBATCH --requeue\n", "", "requeue=yes", "requeue=no", files="*.sbatch")


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two processes for each training, extraction and measuring."""
    folder = tmp_path_factory.mktemp("site") / "shared"
    all_stages = "requeue=yes\n", "requeue=yes\n#FLUENCE parallel=train,extract,measure\n"
    two = "--ntasks-per-node=1", "--ntasks-per-node=2", "gpu:1", "gpu:2"
    return edited_site(folder, *two, *all_stages, files="*.sbatch")


@pytest.fixture(scope="session")
def undisturbed(slurm_session: Cluster, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_undisturbed(slurm_session, site, tmp_path_factory.mktemp("undisturbed"), TWO_SEEDS, ALL)


@pytest.fixture(scope="session")
def undisturbed_on_two_nodes(
    slurm_session: Cluster, two_node_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Study:
    return run_undisturbed(slurm_session, two_node_site, tmp_path_factory.mktemp("two"), FEW_EPOCHS, OF_RUNS[:2])


@pytest.fixture(scope="session")
def undisturbed_of_many_blocks(slurm_session: Cluster, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return run_undisturbed(slurm_session, site, tmp_path_factory.mktemp("blocks"), MANY_BLOCKS, OF_RUNS)
