"""What a compute node sees: a job of a minute that `fluence doctor` sends to each class of nodes.

`python -m jobs.nodeprobe FOLDER CLASS` writes `FOLDER/CLASS.json`. It runs after the site's
prologue, as every job does.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fluence.errors import ArtifactError
from fluence.layout import Layout
from fluence.store.files import read_json, write_json
from fluence.store.trial import hdf5_trouble, lock_trouble
from jobs.batches import CLASS_OF
from jobs.clocks import ahead_of_slurm
from jobs.resources import CLASSES, ResourceClass
from jobs.slurm import NoAnswer, Slurm

STUDY = "study.json"  # beside the answers: the study whose data and weights are looked for
LOCK = "lock"  # beside the answers: the file that the machine which waits for them has locked
_INTERNET = ("pypi.org", 443)
_MOST_LINES, _LONGEST_LINE = 3, 200
_USUAL = re.compile(r"\s*((un)?loading|purging)\b", re.IGNORECASE)  # what `module` says on its way


@dataclass(frozen=True)
class NodeView:
    """What one compute node sees.

    Attributes:
        host: its name.
        python: version of Python.
        fluence: folder that the code was imported from.
        time: its clock, in seconds since the epoch.
        clock: at least and at most how far it is ahead of Slurm's, in seconds; empty if Slurm does not tell.
        home: empty if $HOME can be written to, else why not.
        lock: empty if it notices what the machine that waits for this has locked, else why not.
        hdf5: empty if an HDF5 file can be written and read in the folder, else why not.
        torch: version of torch, or why it cannot be imported.
        built_for: what torch has code for, such as `sm_70`.
        gpus: compute capability of each visible GPU, such as `7.0`.
        cuda: empty if a GPU adds two numbers, or there is none; else why not.
        requeue: what Slurm says of this job: `1`, `0`, or why it does not answer.
        sbatch: empty if a job here could submit another one, else why not.
        internet: whether the network can be reached.
        missing: what is wrong, as seen from here, with the study's data sets and weights that such jobs read.
        prologue: first lines of what the site's prologue has complained about.
    """

    host: str
    python: str
    fluence: str
    time: float
    clock: list[float]
    home: str
    lock: str
    hdf5: str
    torch: str
    built_for: list[str]
    gpus: list[str]
    cuda: str
    requeue: str
    sbatch: str
    internet: bool
    missing: list[str]
    prologue: list[str]


def read_view(path: Path) -> NodeView | None:
    """What a node has written; None if it has not yet."""
    try:
        record = read_json(path)
        return NodeView(**{field.name: record[field.name] for field in fields(NodeView)})
    except (ArtifactError, KeyError, TypeError):
        return None


def view(folder: Path, name: ResourceClass) -> NodeView:
    """Looks around on this machine.

    Args:
        folder: a folder in the study's; small files are written to it and removed.
        name: the class of nodes that this one is of.
    """
    import fluence

    ahead = ahead_of_slurm(Slurm())
    return NodeView(
        host=socket.gethostname(),
        python=platform.python_version(),
        fluence=str(Path(fluence.__file__).resolve().parent),
        time=time.time(),
        clock=[ahead.least, ahead.most] if ahead else [],
        home=_home(),
        lock=lock_trouble(folder / LOCK),
        hdf5=hdf5_trouble(folder),
        requeue=_requeue(),
        sbatch=_sbatch(folder / f"{name}.sh"),
        internet=_internet(),
        missing=_missing(folder, name),
        prologue=_prologue(folder / f"{name}.err"),
        **_torch(),
    )


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


def _sbatch(script: Path) -> str:
    """Slurm's opinion of this job's own script, as of a successor that it would submit."""
    try:
        Slurm().would_start(script.read_text(encoding="utf-8"))
    except (NoAnswer, OSError) as problem:
        return str(problem)
    return ""


def _internet() -> bool:
    try:
        socket.create_connection(_INTERNET, timeout=5).close()
    except OSError:
        return False
    return True


def _missing(folder: Path, name: ResourceClass) -> list[str]:
    """Data sets are read where they are packed, weights where runs are trained and recorded."""
    if not (folder / STUDY).exists():
        return []
    from fluence.study import Study
    from jobs.check import look_for_data, look_for_weights

    study = Study.model_validate_json((folder / STUDY).read_text(encoding="utf-8"))
    found = [*look_for_data(study, Layout(folder.parent))] if name == CLASS_OF["pack"] else []
    found += look_for_weights(study) if name in (CLASS_OF["train"], CLASS_OF["extract"]) else []
    return [f"{finding.key}: {finding.message}" for finding in found if finding.level == "error"]


def _prologue(path: Path) -> list[str]:
    """What stands in the job's standard error before this program has written there."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.strip()[:_LONGEST_LINE] for line in lines if line.strip() and not _USUAL.match(line)]
    return told[:_MOST_LINES]


def main() -> None:
    """Entry point of a probe."""
    folder = Path(sys.argv[1])
    (name,) = (known for known in CLASSES if known == sys.argv[2])
    write_json(folder / f"{name}.json", asdict(view(folder, name)))


if __name__ == "__main__":
    main()
