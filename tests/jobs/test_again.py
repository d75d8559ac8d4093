"""The end of a job: Slurm is asked again while it is busy, and taken at its word when it refuses."""

from __future__ import annotations

import pytest

from jobs import again
from jobs.slurm import NoAnswer


def test_slurm_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(again, "_WAITS_S", (0.0, 0.0))
    problems = [NoAnswer("squeue did not answer within 30 s"), NoAnswer("Socket timed out on send/recv operation")]

    def ask() -> str:
        if problems:
            raise problems.pop()
        return "RUNNING"

    assert again._patiently(ask) == "RUNNING"


@pytest.mark.parametrize(
    ("said", "times"), [("Access/permission denied", 1), ("Unable to contact slurm controller", 3)]
)
def test_a_refusal_counts_at_once_and_silence_in_the_end(
    said: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(again, "_WAITS_S", (0.0, 0.0))
    asked = []

    def ask() -> str:
        asked.append(1)
        raise NoAnswer(said)

    with pytest.raises(NoAnswer, match=said):
        again._patiently(ask)
    assert len(asked) == times
