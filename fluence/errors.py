"""The errors that a user can cause or meet; the command line prints them as one clear line each."""

from __future__ import annotations

from dataclasses import dataclass


class FluenceError(Exception):
    """A mistake or a mishap that is explained to the user without a traceback."""

    exit_code = 1


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong in a study: where it stands, what was found and what to do.

    Attributes:
        key: dotted path of the setting, for example ``models.small.width``.
        message: what was found, and what is allowed.
        line: line in the study file, counted from 1, or None if the setting is not in the file.
        hint: what to type instead, or an empty string.
    """

    key: str
    message: str
    line: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{place}{self.key}: {self.message}{hint}"


class StudyError(FluenceError):
    """The study, the command line or the data are wrong; nothing has been computed."""

    exit_code = 2

    def __init__(self, message: str, mistakes: tuple[Mistake, ...] = ()) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join([message, *(f"  {mistake}" for mistake in mistakes)]))


class ArtifactError(FluenceError):
    """A file is missing, damaged, of another version, or does not belong to this study."""


class UnwritableError(ArtifactError):
    """A place cannot be written: full, read-only, not allowed, or no folder."""

    exit_code = 2


class RunError(FluenceError):
    """A task could not be finished."""


class Diverged(RunError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""


class Interrupted(RunError):
    """The task was asked to stop, has saved its state, and continues when it is started again."""

    exit_code = 130


class LostProcess(RunError):
    """Another process of the same training is gone, or cannot be reached."""


class Skipped(FluenceError):
    """The task cannot be done for a reason that is a finding and no failure, such as a group too small."""
