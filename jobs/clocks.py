"""How far two clocks are apart, as well as that can be told.

Dates of files say little: either end of a network file system may give them. But Slurm's controller tells its time to
whoever asks (`sdiag`), and a question and its answer bound when that was.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from jobs.findings import Finding
from jobs.slurm import NoAnswer, Slurm

_SKEW_S, _BAD_SKEW_S = 5.0, 120.0  # munge refuses messages that are 300 s off
_TOLD = re.compile(r"output at .*\((\d+)\)")


@dataclass(frozen=True)
class Ahead:
    """By how many seconds one clock is ahead of another; negative if it is behind.

    Attributes:
        least: not less than this.
        most: not more than this.
    """

    least: float
    most: float

    @property
    def sure_s(self) -> float:
        """The part that is sure: the number nearest to 0 within the bounds."""
        return max(self.least, min(self.most, 0.0))


def ahead_of_slurm(slurm: Slurm, now: Callable[[], float] = time.time) -> Ahead | None:
    """This machine's clock against that of Slurm's controller, to a second and the time of one call; None if it is
    not told.

    Args:
        slurm: how Slurm is reached.
        now: this machine's clock.
    """
    asked = now()
    try:
        told = _TOLD.search(slurm.call("sdiag"))
    except NoAnswer:
        return None
    answered = now()
    return between(asked, answered, float(told[1]), float(told[1]) + 1) if told else None


def between(asked: float, answered: float, first: float, last: float) -> Ahead:
    """Bounds from one exchange: at some moment one clock showed `asked` … `answered`, the other `first` … `last`."""
    return Ahead(asked - last, answered - first)


def clock_finding(ahead: Ahead, key: str, who: str, whose: str) -> Finding:
    """Whether two clocks agree.

    Args:
        ahead: how far one is ahead.
        key: who has looked.
        who: whose clock it is.
        whose: whose clock it is ahead of.
    """
    sure_s = ahead.sure_s
    if abs(sure_s) < _SKEW_S:
        to_s = max(abs(ahead.least), abs(ahead.most))
        return Finding("ok", key, f"the clock of {who} agrees with {whose} to {to_s:.1f} s")
    side = "ahead of" if sure_s > 0 else "behind"
    found = f"the clock of {who} is at least {abs(sure_s):.0f} s {side} {whose}"
    hint = "tell the administrators, with what `date` prints; times in `fluence status` are off by as much"
    return Finding("error" if abs(sure_s) > _BAD_SKEW_S else "warning", key, found, hint)
