"""A Slurm in memory that can be ill: it runs what it is given at once, as a node would."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fluence.layout import Layout
from fluence.study import Study
from jobs.doctor import Doctor
from jobs.findings import Finding
from jobs.sites import Site, load_site
from jobs.slurm import Answer, Slurm

CONFIG = {
    "ClusterName": "big",
    "SLURM_VERSION": "22.05.8",
    "MaxArraySize": "1001",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
}
FILE = "#!/bin/bash\n#SBATCH --time=60 --account=mine --qos=normal\n"
GPU = f"{FILE}#SBATCH --gres=gpu:1\n#FLUENCE gpu-sm=80\n"
STUDY = {
    "name": "tiny",
    "data": {"datasets": {"faces": {"kind": "synthetic", "num_images": 60}}, "training": "faces", "rated": "faces"},
    "models": {"small": {"kind": "vae"}},
    "grid": {"seeds": [0, 1]},
}


@dataclass
class Health:
    """A Slurm, and what ails it.

    Attributes:
        config: what scontrol shows.
        refuses: what sbatch says to a script that holds this word.
        starts: whether jobs start; else they wait in the queue.
        has_accounting: whether sacct answers.
        max_submit: limit of the QoS.
        partition: what scontrol shows of the only partition.
        clock_s: by how many seconds its clock is ahead; None if it does not tell.
        cancelled: ids given to scancel.
        state: of jobs that do not start.
        scripts: what was submitted.
        bin: folder with the commands that jobs find.
    """

    config: dict[str, str] = field(default_factory=lambda: dict(CONFIG))
    refuses: tuple[str, str] = ("never", "")
    starts: bool = True
    has_accounting: bool = True
    max_submit: str = "10"
    partition: str = "PartitionName=gpu Default=YES GraceTime=0 PreemptMode=REQUEUE State=UP"
    clock_s: float | None = 0.0
    cancelled: list[str] = field(default_factory=list)
    state: str = "PENDING Priority"
    scripts: list[str] = field(default_factory=list)
    bin: str = "/nowhere"
    _jobs: int = 0

    def __call__(self, arguments: Sequence[str], timeout_s: float) -> Answer:
        program, *options = arguments
        if program == "sbatch":
            return self._sbatch(options)
        if program == "scontrol" and "partition" in options:
            return Answer(0, f"{self.partition}\n")
        if program == "sdiag":
            said = "" if self.clock_s is None else f"sdiag output at now ({time.time() + self.clock_s:.0f})\n"
            return Answer(0, said)
        if program == "scontrol":
            lines = "".join(f"{name:<24}= {value}\n" for name, value in self.config.items())
            return Answer(0, lines) if self.config else Answer(1, "", "Unable to contact slurm controller")
        if program == "sacctmgr":
            qos = "qos" in options
            return Answer(0, f"normal|{self.max_submit}\n" if qos else "mine||normal\n")
        if program == "sacct":
            return Answer(0, "") if self.has_accounting else Answer(1, "", "Slurm accounting storage is disabled")
        if program == "squeue" and any(option.startswith("--jobs") for option in options):
            waiting = [f"{job} {self.state}\n" for job in range(1, self._jobs + 1)]
            return Answer(0, "" if self.starts else "".join(waiting))
        if program == "scancel":
            self.cancelled += options
        return Answer(0, "")

    def _sbatch(self, options: Sequence[str]) -> Answer:
        script = Path(options[-1]).read_text()
        word, said = self.refuses
        if word in script:
            return Answer(1, "", said)
        if "--test-only" in options:
            return Answer(0, "", "sbatch: Job 9 to start at 1 using 1 processors on nodes n1 in partition gpu")
        self._jobs += 1
        self.scripts.append(script)
        if self.starts:
            given = dict(line[10:].split("=", 1) for line in script.splitlines() if re.match("#SBATCH --.*=", line))
            with open(given["output"].strip("'"), "w") as log, open(given["error"].strip("'"), "w") as errors:
                environment = {**os.environ, "SLURM_JOB_ID": "1", "PATH": f"{self.bin}:{os.environ['PATH']}"}
                subprocess.run(["bash", options[-1]], stdout=log, stderr=errors, env=environment, check=False)
        return Answer(0, f"{self._jobs}\n")


def program(folder: Path, name: str, line: str) -> None:
    """Puts a command where jobs find it: one line of shell."""
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def site(folder: Path, gpu: str = GPU, cpu: str = FILE) -> Site:
    """A site with these files; the third is as plain as a file can be."""
    here = folder / "here"
    here.mkdir(exist_ok=True)
    for name, text in (("gpu", gpu), ("cpu", cpu), ("bigmem", FILE)):
        (here / f"{name}.sbatch").write_text(text, encoding="utf-8")
    return load_site(str(here))


def examination(
    folder: Path, health: Health, found: Site | None = None, root: Path | None = None, **changes: object
) -> Doctor:
    study = Study.model_validate(STUDY | changes)
    return Doctor(found or site(folder), Layout(root or folder / "results" / "tiny"), study, Slurm(run=health))


def look(
    folder: Path, health: Health, found: Site | None = None, root: Path | None = None, **changes: object
) -> list[Finding]:
    """What the doctor sees from here; `changes` are of the study."""
    return list(examination(folder, health, found, root, **changes).from_here())


def ask(
    folder: Path, health: Health, found: Site | None = None, wait_s: float = 60, **changes: object
) -> list[Finding]:
    """What the nodes tell the doctor; `changes` are of the study."""
    return list(examination(folder, health, found, **changes).from_nodes(wait_s))


def words(findings: list[Finding], level: str = "error") -> list[str]:
    """The findings of one level, as they are printed."""
    return [str(finding) for finding in findings if finding.level == level]
