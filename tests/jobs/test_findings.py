"""Findings: whoever finds something wrong also says what to do."""

from __future__ import annotations

import pytest

from fluence.errors import Mistake, StudyError
from jobs.findings import Finding, findings_of


@pytest.mark.parametrize("level", ["error", "warning"])
def test_what_is_wrong_comes_with_what_to_do(level: str) -> None:
    with pytest.raises(ValueError, match="must say what to do"):
        Finding(level, "disk", "it is full")
    assert str(Finding(level, "disk", "it is full", "free some space")).endswith("disk: it is full (free some space)")


def test_what_is_well_needs_no_word() -> None:
    assert str(Finding("ok", "disk", "80 GB free")) == "ok       disk: 80 GB free"


def test_a_mistake_that_says_what_to_do_keeps_it() -> None:
    error = StudyError(
        "the table", (Mistake("beuty", "no such column", 1, "did you mean 'beauty'?"), Mistake("a", "b"))
    )
    assert [finding.hint for finding in findings_of(error, "data", "read it")] == ["did you mean 'beauty'?", "read it"]
    (found,) = findings_of(StudyError("record.layers: there is no conv9"), "models", "read it")
    assert (found.key, found.message, found.hint) == ("record.layers", "there is no conv9", "read it")
