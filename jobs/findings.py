"""What `fluence check` and `fluence doctor` say: one finding for each thing that was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fluence.errors import FluenceError, Mistake

Level = Literal["error", "warning", "ok"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: `error` keeps the study from running; a `warning` is worth a thought; `ok` is as it should be.
        key: the setting, or the part of the machine, that it is about.
        message: what was found.
        hint: what to type or to do about it; only what is `ok` may go without.

    Raises:
        ValueError: an error or a warning does not say what to do.
    """

    level: Level
    key: str
    message: str
    hint: str = ""

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.hint:
            raise ValueError(f"a finding must say what to do about it; this one does not: {self}")

    def __str__(self) -> str:
        return f"{self.level:<8} {self.key}: {self.message}" + (f" ({self.hint})" if self.hint else "")


Findings = Iterator[Finding]


@dataclass(frozen=True)
class Report:
    """Everything that was looked at, in order."""

    findings: tuple[Finding, ...]

    @property
    def has_errors(self) -> bool:
        """Whether the study cannot run as it is."""
        return any(finding.level == "error" for finding in self.findings)

    @property
    def count(self) -> str:
        """How many errors and warnings there are, in words."""
        errors, warnings = (sum(f.level == level for f in self.findings) for level in ("error", "warning"))
        return f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), self.count])


def findings_of(error: FluenceError, key: str, hint: str) -> Findings:
    """One finding for each mistake of an error; one that names its own setting keeps it.

    Args:
        error: what was raised.
        key: the setting that it is about, unless it names one.
        hint: what to do, where a mistake does not say.
    """
    first, *_ = str(error).splitlines()
    mistakes: tuple[Mistake, ...] = getattr(error, "mistakes", ())
    if not mistakes:
        named, colon, message = first.partition(": ")
        own = colon and " " not in named and "." in named and "/" not in named
        yield Finding("error", named, message, hint) if own else Finding("error", key, first, hint)
    for mistake in mistakes:
        place = f"line {mistake.line}: " if mistake.line else ""
        yield Finding("error", key, f"{place}{mistake.key}: {mistake.message}", mistake.hint or hint)


def counted(number: int, thing: str) -> str:
    """`1 error`, `2 errors`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
