"""Reads a real sbatch file: its directives, what `#FLUENCE` lines add, and the prologue.

The file is what sbatch itself would take: `#SBATCH` lines up to the first command, then shell. `{name}` stands for a
setting of the user's; in the prologue not after `$` and not inside single quotes, where it is shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fluence.errors import Mistake

Placeholders = Mapping[str, str]

_SHORT = {
    "A": "account", "a": "array", "B": "extra-node-info", "C": "constraint", "c": "cpus-per-task", "D": "chdir",
    "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "H": "hold", "i": "input", "J": "job-name",
    "k": "no-kill", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "O": "overcommit", "o": "output", "p": "partition", "q": "qos", "S": "core-spec", "s": "oversubscribe",
    "t": "time", "w": "nodelist", "x": "exclude",
}  # fmt: skip
_SHORT_FLAGS = "HOsk"
_FLAGS = frozenset({
    "contiguous", "exclusive", "get-user-env", "hold", "no-kill", "no-requeue", "overcommit", "oversubscribe",
    "reboot", "requeue", "spread-job", "test-only", "use-min-nodes", "verbose", "wait",
})  # fmt: skip
_PLACEHOLDER = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_SAFE_VALUE = re.compile(r"[A-Za-z0-9@_.,:/+=%-]+")

_TIME = re.compile(
    r"(?:([0-9]{1,6})-([0-9]{1,6})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?)"
    r"|([0-9]{1,6})(?::([0-9]{1,6}))?(?::([0-9]{1,6}))?"
)


@dataclass(frozen=True)
class Directive:
    """One option of sbatch, or one cap.

    Attributes:
        name: its long name, without dashes in front.
        value: what is given, or None for a flag.
        line: line in the file, counted from 1.
    """

    name: str
    value: str | None
    line: int


@dataclass(frozen=True)
class SbatchFile:
    """What one file says, before anything is checked.

    Attributes:
        path: the file.
        directives: the `#SBATCH` options in their order, each once.
        caps: the `#FLUENCE` lines, each once.
        prologue: the shell lines after them.
        is_login_shell: whether the first line asks for `bash -l`.
        mistakes: what cannot be read; the line says where.
        unset: placeholders without a value, with the line of each.
    """

    path: Path
    directives: dict[str, Directive]
    caps: dict[str, Directive]
    prologue: tuple[str, ...]
    is_login_shell: bool
    mistakes: tuple[Mistake, ...]
    unset: tuple[tuple[str, int], ...]

    @property
    def label(self) -> str:
        """Site and file, as in messages: `jean-zay-v100/gpu.sbatch`."""
        return f"{self.path.parent.name}/{self.path.name}"


@dataclass
class _Reader:
    """Collects what the lines say."""

    label: str
    placeholders: Placeholders
    directives: dict[str, Directive] = field(default_factory=dict)
    caps: dict[str, Directive] = field(default_factory=dict)
    prologue: list[str] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    unset: list[tuple[str, int]] = field(default_factory=list)

    def line(self, number: int, text: str) -> None:
        if text.startswith("#SBATCH"):
            self._sbatch(number, text.removeprefix("#SBATCH"))
        elif text.startswith("#FLUENCE"):
            self._cap(number, text.removeprefix("#FLUENCE"))
        elif self.prologue or (text.strip() and not text.startswith("#")):
            self.prologue.append(self._shell(number, text))

    def _sbatch(self, number: int, text: str) -> None:
        if self.prologue:
            self._report("#SBATCH", "stands after the first command, where Slurm ignores it", number, "move it up")
        try:
            words = shlex.split(text, comments=True)
        except ValueError:
            self._report("#SBATCH", f"a quote is not closed in `{text.strip()}`", number)
            return
        while words:
            word = words.pop(0)
            name, value = self._option(word, words)
            if name is None:
                self._report("#SBATCH", f"`{word}` is no option", number, "options begin with - or --")
                return
            self._add(self.directives, Directive(name, self._plain(value, name, number), number), f"--{name}")

    def _option(self, word: str, rest: list[str]) -> tuple[str | None, str | None]:
        """Name and value of an option in any of its spellings; takes the value from the words that follow."""
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            takes_next = not equals and name not in _FLAGS and rest and not rest[0].startswith("-")
            return name, value if equals else rest.pop(0) if takes_next else None
        if word.startswith("-") and word[1:2] in _SHORT:
            letter, value = word[1], word[2:]
            if letter in _SHORT_FLAGS:
                return _SHORT[letter], None
            return _SHORT[letter], value or (rest.pop(0) if rest else None)
        return None, None

    def _cap(self, number: int, text: str) -> None:
        name, equals, value = text.strip().partition("=")
        if not equals or not name.strip() or not value.strip():
            self._report("#FLUENCE", f"`{text.strip()}` is no key=value", number, "for example: max-time=20:00:00")
            return
        value = self._plain(value.strip(), name.strip(), number) or ""
        self._add(self.caps, Directive(name.strip(), value, number), name.strip())

    def _add(self, into: dict[str, Directive], new: Directive, shown: str) -> None:
        if first := into.get(new.name):
            self._report(shown, f"is written twice, first on line {first.line}", new.line, "keep one of the two")
        else:
            into[new.name] = new

    def _plain(self, value: str | None, name: str, number: int) -> str | None:
        """A value with its placeholders filled in; what a user sets must be a plain word there."""

        def fill(match: re.Match[str]) -> str:
            given = self._given(match, number)
            if given and not _SAFE_VALUE.fullmatch(given):
                self._report(name, f"{match[0]} is set to {given!r}", number, "use letters, digits and @_.,:/+=%-")
            return given

        return None if value is None else _PLACEHOLDER.sub(fill, value)

    def _shell(self, number: int, text: str) -> str:
        """A line of shell with its placeholders filled in, quoted; what stands in single quotes is left alone."""
        parts = re.split(r"('[^']*')", text)
        fill = lambda match: shlex.quote(self._given(match, number))  # noqa: E731
        return "".join(part if part.startswith("'") else _PLACEHOLDER.sub(fill, part) for part in parts)

    def _given(self, match: re.Match[str], number: int) -> str:
        value = self.placeholders.get(match[1], "")
        if not value:
            self.unset.append((match[1], number))
        return value

    def _report(self, key: str, message: str, number: int, hint: str = "") -> None:
        self.mistakes.append(Mistake(f"{self.label} {key}", message, number, hint))


def read_sbatch(path: Path, placeholders: Placeholders) -> SbatchFile:
    """Reads one file.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError: it is not UTF-8 text.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    reader = _Reader(f"{path.parent.name}/{path.name}", placeholders)
    if not lines or not lines[0].startswith("#!"):
        reader.mistakes.append(Mistake(reader.label, "sbatch wants `#!/bin/bash` as the first line", 1))
    for number, text in enumerate(lines, 1):
        reader.line(number, text)
    while reader.prologue and not reader.prologue[-1].strip():
        reader.prologue.pop()
    return SbatchFile(
        path=path,
        directives=reader.directives,
        caps=reader.caps,
        prologue=tuple(reader.prologue),
        is_login_shell=bool(lines and re.match(r"#!\S*sh\s+(-l|--login)\b", lines[0])),
        mistakes=tuple(reader.mistakes),
        unset=tuple(reader.unset),
    )


def minutes(text: str) -> int:
    """A time as Slurm writes it, in minutes, rounded up as Slurm does.

    `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` and
    `days-hours:minutes:seconds`.

    **Source:** `man sbatch`, --time.

    Raises:
        ValueError: it is none of these, or it is zero, which Slurm takes for no limit.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no time")
    if match[1]:
        seconds = int(match[1]) * 86400 + int(match[2]) * 3600 + int(match[3] or 0) * 60 + int(match[4] or 0)
    elif match[7]:
        seconds = int(match[5]) * 3600 + int(match[6]) * 60 + int(match[7])
    else:
        seconds = int(match[5]) * 60 + int(match[6] or 0)
    if seconds == 0:
        raise ValueError(f"{text!r} means no limit at all")
    return -(-seconds // 60)
