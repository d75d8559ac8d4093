"""What tasks are given: the study as it was when they were planned, and the fingerprints of its data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluence.errors import StudyError
from fluence.layout import Layout
from fluence.store.files import read_json, write_json
from fluence.store.outcome import read_outcome
from fluence.study import Study
from fluence.studyfile import expand_root
from jobs.pipeline import Task, datasets_in_use, pack_section, tasks_of


@dataclass(frozen=True)
class Snapshot:
    """A study with absolute paths, and what its data sets hold.

    Attributes:
        study: the study.
        fingerprints: hash of what lies on disk, by data set.
    """

    study: Study
    fingerprints: Mapping[str, str]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task of the study, each after those it needs."""
        return tasks_of(self.study, self.fingerprints)

    @property
    def _content(self) -> dict[str, Any]:
        return {"study": self.study.model_dump(mode="json"), "fingerprints": dict(self.fingerprints)}

    def path(self, layout: Layout) -> Path:
        """Where `save` writes: under its own hash, so that a running task never sees an edited study."""
        content = json.dumps(self._content, sort_keys=True)
        return layout.snapshot(hashlib.sha256(content.encode()).hexdigest()[:16])

    def save(self, layout: Layout) -> Path:
        """Writes the snapshot, unless it is there already; returns its path."""
        path = self.path(layout)
        if not path.exists():
            write_json(path, self._content)
        return path

    @classmethod
    def load(cls, path: Path) -> Snapshot:
        """Reads a snapshot that `save` wrote."""
        content = read_json(path)
        return cls(Study.model_validate(content["study"]), content["fingerprints"])


def take_snapshot(study: Study, layout: Layout) -> Snapshot:
    """Looks at the data of a study.

    A data set whose folder cannot be seen from here, but which has been packed, counts as it was packed: status,
    analysis and report also work where the images are not.

    Raises:
        StudyError: the data cannot be read, and have not been packed.
    """
    fingerprints = {name: _fingerprint(study, name, layout) for name in datasets_in_use(study)}
    return Snapshot(_absolute(study), fingerprints)


def _fingerprint(study: Study, name: str, layout: Layout) -> str:
    from fluence.data.readers import fingerprint  # pandas is slow to import

    try:
        return fingerprint(study.data.datasets[name], study.data)
    except StudyError:
        outcome = read_outcome(layout.outcome("pack", name))
        if outcome is None or outcome.status != "done":
            raise
        packed = dict(outcome.section)
        packed_from = packed.pop("fingerprint")
        if packed != pack_section(study, name):
            raise
        return str(packed_from)


def _absolute(study: Study) -> Study:
    """The same study with roots that mean the same from any folder and in any environment."""
    datasets = dict(study.data.datasets)
    for name, dataset in datasets.items():
        if dataset.kind != "synthetic":
            try:
                root = os.path.abspath(expand_root(dataset.root))
            except StudyError:
                continue  # not set here; only a task that reads the images needs it
            datasets[name] = dataset.model_copy(update={"root": root})
    return study.model_copy(update={"data": study.data.model_copy(update={"datasets": datasets})})
