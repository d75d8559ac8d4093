"""Clocks: bounds hold whatever the delays, and only what is sure is called wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.clocks import Ahead, ahead_of_slurm, clock_finding
from jobs.slurm import Answer, NoAnswer, Slurm

DELAYS_S = st.floats(0, 100)


@given(st.floats(-1e4, 1e4), DELAYS_S, DELAYS_S)
def test_the_truth_lies_between_the_bounds(ahead_s: float, there_s: float, back_s: float) -> None:
    """Slurm's clock shows 5000 when the question leaves; it tells whole seconds of when the question came."""
    clock = iter([5000 + ahead_s, 5000 + there_s + back_s + ahead_s])
    slurm = Slurm(run=lambda *_: Answer(0, f"***\nsdiag output at Sat Nov 21 15:30:56 2026 ({int(5000 + there_s)})\n"))
    found = ahead_of_slurm(slurm, lambda: next(clock))
    assert found is not None
    assert found.least - 1e-6 <= ahead_s <= found.most + 1e-6
    assert found.most - found.least == pytest.approx(1 + there_s + back_s)
    assert abs(found.sure_s) <= abs(ahead_s) + 1e-6
    assert found.sure_s * ahead_s >= -1e-6


def test_a_slurm_that_does_not_tell_its_time() -> None:
    def refuse(*_: object) -> Answer:
        raise NoAnswer("there is no sdiag here")

    assert ahead_of_slurm(Slurm(run=refuse)) is None
    assert ahead_of_slurm(Slurm(run=lambda *_: Answer(0, "Server thread count: 3\n"))) is None


@pytest.mark.parametrize(
    ("least", "most", "level", "said"),
    [
        (-0.5, 0.6, "ok", "agrees with Slurm's to 0.6 s"),
        (-300.0, 2.0, "ok", "agrees with Slurm's to 300.0 s"),
        (-31.0, -30.0, "warning", "at least 30 s behind Slurm's"),
        (30.0, 400.0, "warning", "at least 30 s ahead of Slurm's"),
        (400.0, 401.0, "error", "at least 400 s ahead of Slurm's"),
    ],
)
def test_what_is_said_of_two_clocks(least: float, most: float, level: str, said: str) -> None:
    finding = clock_finding(Ahead(least, most), "clock", "n1", "Slurm's")
    assert finding.level == level
    assert said in finding.message
