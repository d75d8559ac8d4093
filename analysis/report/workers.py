"""The parts of a report, made by several processes: figures take most of its time."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import joblib

from analysis.report.evidence import Evidence
from analysis.report.summary import Summary

Part = Callable[[Evidence, Summary], Any]
"""Makes one part of a report from what the study has left behind."""

_MOST_WORKERS = 8  # each needs half a gigabyte
_WORTH_A_PROCESS = 16  # parts; fewer are made before a second process has loaded its libraries


def make_parts(
    parts: Sequence[Part], evidence: Evidence, summary: Summary, *, num_workers: int | None = None
) -> list[Any]:
    """What the parts return, in their order, the same from any number of processes.

    Args:
        parts: functions of the evidence and its summary.
        evidence: of the study; what the parts found missing is noted in it, in their order.
        summary: of its statistics.
        num_workers: processes; by default as many as there are cores if there are parts enough for them.
    """
    num_workers = num_workers or (min(joblib.cpu_count(), _MOST_WORKERS) if len(parts) >= _WORTH_A_PROCESS else 1)
    if num_workers == 1:
        return [part(evidence, summary) for part in parts]
    with tempfile.TemporaryDirectory(prefix="fluence-report-") as folder:
        shared = Path(folder) / "evidence.pickle"
        shared.write_bytes(pickle.dumps((evidence, summary)))
        found = joblib.Parallel(n_jobs=num_workers, batch_size=1)(joblib.delayed(_make)(part, shared) for part in parts)
    for _, missing in found:
        for line in missing:
            evidence.note(line)
    return [result for result, _ in found]


def _make(part: Part, shared: Path) -> tuple[Any, list[str]]:
    """What a part returns, and what it found missing."""
    evidence, summary = _shared(shared)
    own = replace(evidence, missing=[])
    return part(own, summary), own.missing


@lru_cache(maxsize=1)
def _shared(path: Path) -> tuple[Evidence, Summary]:
    """What all parts are made from, read once by each process."""
    return pickle.loads(path.read_bytes())
