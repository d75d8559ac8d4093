"""When to give up: a task that was started again and again without coming any further has failed.

Slurm's count of restarts and submitit's clock know nothing of progress. Here, what counts is the newest checkpoint,
or the newest block of images that is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fluence.errors import ArtifactError
from fluence.layout import Layout
from fluence.store.files import read_json, write_json
from fluence.store.outcome import read_progress
from jobs.pipeline import Task

MOST_STARTS = 5
_KEEP_BLOCKS = ("extract", "measure")  # they tell of a block when it is kept, not when it is done


def is_hopeless(task: Task, layout: Layout, submission: str) -> bool:
    """Counts one more start of a task; True if it has been started too often at the same place.

    Args:
        task: the task.
        layout: the study's folder.
        submission: names what was submitted; with another one the count begins anew.
    """
    path = layout.starts(task.stage, task.name)
    here = {"key": task.key, "submission": submission, "place": _place(task, layout)}
    before = _read(path)
    same = all(before.get(name) == value for name, value in here.items())
    starts = int(before.get("starts", 0)) + 1 if same else 1
    write_json(path, {**here, "starts": starts, "run": _this_run()})
    return starts > MOST_STARTS


def was_counted(stage: str, name: str, layout: Layout) -> bool:
    """Whether the present run of this job has got so far that its start was counted."""
    return _read(layout.starts(stage, name)).get("run") == _this_run()


def _this_run() -> str:
    return f"{os.environ.get('SLURM_JOB_ID', '')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _place(task: Task, layout: Layout) -> str:
    """What moves only when the task has come further for good."""
    if task.stage == "train":
        return max((path.name for path in layout.checkpoints(task.name).glob("step-*.pt")), default="")
    if task.stage not in _KEEP_BLOCKS:
        return ""
    progress = read_progress(layout.progress(task.stage, task.name), task.key)
    return f"{progress.fraction} {progress.text}" if progress else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except (ArtifactError, OSError):
        return {}
    return record if isinstance(record, dict) else {}
