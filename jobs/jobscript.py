"""The text that is handed to sbatch for one batch: the site's directives and prologue, and what fluence adds to them.

submitit writes the script and starts the ranks in it. Everything that a job reads lies in its folder before sbatch is
called, under names that need no job id; so a job does not depend on the shell that submitted it living on.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluence.errors import StudyError
from fluence.layout import Layout
from jobs.batches import Draft
from jobs.resources import Resources
from jobs.sites import Site

PICKLE, SCRIPT = "task.pkl", "job.sh"
_LISTEN_LATER = """bash -c 'trap "" USR2 TERM; exec "$0" "$@"'"""
_REFUSED = re.compile(r"[%'\"\\:\x00-\x1f\x7f]")
_COUNT = re.compile(r"(?<![0-9A-Za-z])[0-9]+$")
_GPU_OPTIONS = ("gres", "gpus", "gpus-per-node")


@dataclass(frozen=True)
class Place:
    """Where a batch's files are.

    Attributes:
        folder: folder of the batch.
        snapshot: the study as it was planned.
        code: copy of the code.
    """

    folder: Path
    snapshot: Path
    code: Path


def refuse_strange_folder(layout: Layout) -> None:
    """Makes sure that Slurm will take the paths below the study's folder for what they are.

    Raises:
        StudyError: the path has a character that Slurm, or PYTHONPATH, reads as something else.
    """
    if found := _REFUSED.search(str(layout.root)):
        raise StudyError(
            f"--output {str(layout.root)!r}: Slurm would not take {found[0]!r} for part of a path; choose a folder "
            "without %, quotes, colons, backslashes and control characters"
        )


def job_parameters(site: Site, draft: Draft, token: str, comment: str, after: str) -> dict[str, Any]:
    """The site's parameters for submitit, with names and dependencies."""
    parameters = site.submitit_parameters(draft.resource_class)
    others = parameters["slurm_additional_parameters"]
    if draft.stage not in site[draft.resource_class].caps.parallel:
        parameters |= {"nodes": 1, "tasks_per_node": 1}
        others |= with_gpus(others, 1)
    others["comment"] = comment
    if after:
        others["dependency"] = after
    own = {"name": f"{token}-{draft.stage}", "stderr_to_stdout": True, "array_parallelism": len(draft.tasks)}
    return parameters | own


def with_gpus(options: Mapping[str, Any], number: int) -> dict[str, str]:
    """The options that ask for GPUs, with another number of them: `gpu:v100:4` → `gpu:v100:1`."""
    return {name: _COUNT.sub(str(number), str(options[name])) for name in _GPU_OPTIONS if name in options}


def job_script(site: Site, draft: Draft, place: Place, parameters: dict[str, Any]) -> str:
    """The script of one batch: an array, or a single job if there is but one task."""
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        """submitit's, on any machine: scripts are also shown where there is no Slurm."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(place.folder, python=f"{_LISTEN_LATER} {shlex.quote(sys.executable)}")
    found = site[draft.resource_class]
    lines = {"slurm_setup": [*parameters["slurm_setup"], *_setup(place, found)], "teardown": _teardown(place)}
    names = {name.removeprefix("slurm_"): value for name, value in (parameters | lines).items()}
    executor.update_parameters(**executor._convert_parameters(names))
    if len(draft.tasks) > 1:
        executor.parameters["map_count"] = len(draft.tasks)
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _setup(place: Place, found: Resources) -> list[str]:
    """After the site's prologue. The number of threads is set since it can change the last bit of a result.

    A prologue's `set -e` must not end the script when a rank ends with a code: what that means is decided after it.

    submitit looks for a pickle named after the job; here it is a link to the one of the batch. What a job that was
    killed while it wrote has left behind would stop submitit. `trap` in the command keeps signals from ending a rank
    that does not listen yet.
    """
    return [
        "set +eu; set +o pipefail; trap - ERR EXIT",
        f"export PYTHONPATH={shlex.quote(str(place.code))}${{PYTHONPATH:+:$PYTHONPATH}}",
        "export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1",
        f"export OMP_NUM_THREADS={found.cpus_per_task}",
        f"cd {shlex.quote(str(place.folder))}",
        "element=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}",
        'rm -f "${element}_submitted.pkl.save_tmp"',
        f'ln -sf {PICKLE} "${{element}}_submitted.pkl"',
    ]


def _teardown(place: Place) -> list[str]:
    """What the ranks' end means is decided in `jobs.again`; outcomes are on disk, so submitit's results can go."""
    words = [sys.executable, "-m", "jobs.again", str(place.folder), str(place.snapshot)]
    return [
        f"{shlex.join(words)} $?",
        "code=$?",
        'rm -f "${element}_submitted.pkl" "${element}"_*_result.pkl',
        "exit $code",
    ]
