"""What a compute node sees: a job of a minute that `fluence doctor` sends to each class of nodes.

`python -m jobs.nodeprobe FOLDER CLASS` writes `FOLDER/CLASS.json`. It runs after the site's
prologue, as every job does.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fluence.errors import ArtifactError
from fluence.store.files import read_json, write_json, write_text
from fluence.store.trial import hdf5_trouble, trial_path
from jobs.slurm import NoAnswer, Slurm

STUDY = "study.json"  # beside the answers: the study whose weights are looked for
_INTERNET = ("pypi.org", 443)


@dataclass(frozen=True)
class NodeView:
    """What one compute node sees.

    Attributes:
        host: its name.
        python: version of Python.
        fluence: folder that the code was imported from.
        clock_ahead_s: its clock less the file system's, in seconds.
        home: empty if $HOME can be written to, else why not.
        hdf5: empty if an HDF5 file can be written and read in the folder, else why not.
        torch: version of torch, or why it cannot be imported.
        built_for: what torch has code for, such as `sm_70`.
        gpus: compute capability of each visible GPU, such as `7.0`.
        cuda: empty if a GPU adds two numbers, or there is none; else why not.
        requeue: what Slurm says of this job: `1`, `0`, or why it does not answer.
        internet: whether the network can be reached.
        weights: what is wrong with the study's weights, as seen from here.
    """

    host: str
    python: str
    fluence: str
    clock_ahead_s: float
    home: str
    hdf5: str
    torch: str
    built_for: list[str]
    gpus: list[str]
    cuda: str
    requeue: str
    internet: bool
    weights: list[str]


def read_view(path: Path) -> NodeView | None:
    """What a node has written; None if it has not yet."""
    try:
        record = read_json(path)
        return NodeView(**{field.name: record[field.name] for field in fields(NodeView)})
    except (ArtifactError, KeyError, TypeError):
        return None


def view(folder: Path) -> NodeView:
    """Looks around on this machine.

    Args:
        folder: a folder below the study's; small files are written to it and removed.
    """
    import fluence

    return NodeView(
        host=socket.gethostname(),
        python=platform.python_version(),
        fluence=str(Path(fluence.__file__).resolve().parent),
        clock_ahead_s=clock_ahead_s(folder),
        home=_home(),
        hdf5=hdf5_trouble(folder),
        requeue=_requeue(),
        internet=_internet(),
        weights=_weights(folder / STUDY),
        **_torch(),
    )


def clock_ahead_s(folder: Path) -> float:
    """This machine's clock less the clock that stamps files in a folder, in seconds; negative if it is behind."""
    with trial_path(folder, ".clock") as path:
        before = time.time()
        write_text(path, "")
        return (before + time.time()) / 2 - path.stat().st_mtime


def _home() -> str:
    path = Path.home() / f".fluence-{socket.gethostname()}-{os.getpid()}"
    try:
        path.touch()
        path.unlink()
    except OSError as error:
        return f"{path.parent}: {error.strerror}"
    return ""


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # whatever a broken installation raises
        return {"torch": f"{type(error).__name__}: {error}", "built_for": [], "gpus": [], "cuda": ""}
    found = {"torch": torch.__version__, "built_for": torch.cuda.get_arch_list(), "gpus": [], "cuda": ""}
    try:
        capabilities = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
        found["gpus"] = [f"{major}.{minor}" for major, minor in capabilities]
        for number in range(len(capabilities)):
            torch.ones(2, device=f"cuda:{number}").sum().item()
    except Exception as error:  # the driver's own words
        found["cuda"] = str(error).splitlines()[0] if str(error) else type(error).__name__
    return found


def _requeue() -> str:
    try:
        said = Slurm().call("scontrol", "show", "job", "--oneliner", os.environ.get("SLURM_JOB_ID", ""))
    except NoAnswer as problem:
        return str(problem)
    return next((word.removeprefix("Requeue=") for word in said.split() if word.startswith("Requeue=")), "unknown")


def _internet() -> bool:
    try:
        socket.create_connection(_INTERNET, timeout=5).close()
    except OSError:
        return False
    return True


def _weights(path: Path) -> list[str]:
    if not path.exists():
        return []
    from fluence.study import Study
    from jobs.check import look_for_weights

    study = Study.model_validate_json(path.read_text(encoding="utf-8"))
    return [f"{finding.key}: {finding.message}" for finding in look_for_weights(study) if finding.level == "error"]


def main() -> None:
    """Entry point of a probe."""
    folder, name = Path(sys.argv[1]), sys.argv[2]
    write_json(folder / f"{name}.json", asdict(view(folder)))


if __name__ == "__main__":
    main()
