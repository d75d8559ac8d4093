"""The verb `weights`: which weights files a study needs, whether they are there, and fetching what is published."""

from __future__ import annotations

import http.client
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fluence.errors import ArtifactError, FluenceError, RunError, StudyError
from fluence.store.files import atomic_path
from fluence.store.pretrained import RANDOM, Weights, check_hash, needs_of
from fluence.study import Study
from jobs.plan import Planned
from jobs.sites import Site

State = Literal["there", "missing", "damaged", "random"]
_TIMEOUT_S = 30.0
_PLACES = ("TORCH_HOME", "XDG_CACHE_HOME")
_READ_WEIGHTS = ("train", "extract")


_MOST_NAMED = 2  # settings in a line that need the same file


@dataclass(frozen=True)
class WeightsRow:
    """One file, or one network with random weights, and what needs it.

    Attributes:
        name: name of the file, or of the network.
        needed_by: what needs it, with the settings that say so.
        folder: where it is looked for; empty for random weights.
        state: `there` and whole, `missing`, `damaged`, or `random`, which needs no file.
        reason: what is wrong, and what to do; empty if nothing is.
        url: where anybody can download it; None if it is the user's own.
    """

    name: str
    needed_by: str
    folder: str
    state: State
    reason: str = ""
    url: str | None = None

    @property
    def is_there(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.state in ("there", "random")


def weights_rows(study: Study) -> list[WeightsRow]:
    """Every weights file that a study needs, and how it stands, as seen from this machine."""
    needs: dict[tuple[str, str], list[Weights]] = {}
    for need in needs_of(study):
        needs.setdefault((str(need.path or need.network), need.setting), []).append(need)
    return [_row(group) for group in needs.values()]


def _needed_by(needs: list[Weights]) -> str:
    """`LPIPS (vgg) in models.a.reconstruction, models.b.reconstruction and 34 more`."""
    keys: dict[str, list[str]] = {}
    for need in needs:
        keys.setdefault(need.who, []).append(need.key)
    return "; ".join(f"{who} in {_shortened(places)}" for who, places in keys.items())


def _shortened(places: list[str]) -> str:
    more = len(places) - _MOST_NAMED
    return ", ".join(places[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _row(needs: list[Weights]) -> WeightsRow:
    need, path = needs[0], needs[0].path
    needed_by = _needed_by(needs)
    name, folder = (path.name, str(path.parent)) if path else (need.network, "")
    state: State = "random" if need.setting == RANDOM else "there"
    try:
        need.find()
        return WeightsRow(name, needed_by, folder, state, url=need.url)
    except StudyError as error:
        return WeightsRow(name, needed_by, folder, "missing", str(error), need.url)
    except ArtifactError as error:
        return WeightsRow(name, needed_by, folder, "damaged", str(error), need.url)


def weights_table(rows: list[WeightsRow]) -> str:
    """The files as lines for people."""
    if not rows:
        return "the study needs no weights"
    head = ("file", "state", "needed by", "looked for in")
    cells = [(row.name, row.state, row.needed_by, row.folder or "no file needed") for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *cells)]
    reasons = [f"{row.name}: {row.reason}" for row in rows if row.reason]
    return "\n".join([*lines, *([""] if reasons else []), *reasons])


# ── Fetching ─────────────────────────────────────────────────────────────────────────────────────────────────────


def fetch_weights(rows: list[WeightsRow], say: Callable[[str], None]) -> None:
    """Downloads what is missing or damaged and published; what fails or is not published is said, and stays missing."""
    for row in rows:
        if row.is_there or row.url is None:
            continue
        say(f"fetching {row.url}")
        try:
            download(row.url, Path(row.folder) / row.name)
        except FluenceError as error:
            say(f"{error}")


def download(url: str, path: Path) -> None:
    """Downloads a file, compares it with the hash in its name, and only then gives it that name.

    Raises:
        RunError: there is no way to the server, it has no such file, or the connection broke.
        ArtifactError: what came has another hash.
        UnwritableError: nothing can be written there.
    """
    with atomic_path(path) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file, 2**20)
                expected = answer.headers.get("Content-Length")
        except urllib.error.HTTPError as error:
            raise RunError(f"{url} cannot be fetched: the server says {error.code} {error.reason}") from error
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", None) or error
            raise RunError(
                f"{url} cannot be fetched ({reason}); fetch it on a machine with internet, and copy it to {path}"
            ) from error
        found = temporary.stat().st_size
        if expected is not None and found != int(expected):
            raise RunError(f"{url}: the connection broke after {found:,} of {int(expected):,} bytes; try again")
        check_hash(temporary, path.name)


# ── Before anything is run or sent to a cluster ──────────────────────────────────────────────────────────────────


def refuse_to_run_without_weights(study: Study, planned: tuple[Planned, ...]) -> None:
    """Looks for weights before anything is run here, if trainings or extractions are left to do.

    Raises:
        StudyError: a file is missing or damaged.
    """
    if any(entry.to_do and entry.task.stage in _READ_WEIGHTS for entry in planned):
        _refuse([row for row in weights_rows(study) if not row.is_there], "run")


def refuse_absent_weights(study: Study, site: Site) -> tuple[str, ...]:
    """Looks for weights before anything is sent.

    Args:
        study: what is to be sent.
        site: where to. Where its prologue says where weights are, this machine cannot know whether they are there.

    Returns:
        Notes about what only the nodes can see.

    Raises:
        StudyError: a file is missing or damaged.
    """
    absent = [row for row in weights_rows(study) if not row.is_there]
    prologue = "\n".join(site.setup("gpu"))
    elsewhere = [row for row in absent if row.url and any(word in prologue for word in _PLACES)]
    _refuse([row for row in absent if row not in elsewhere], "sent")
    return tuple(
        f"{row.name} is not in {row.folder}, but {site.name} says in its prologue where such files are; `fluence "
        f"doctor` asks the nodes"
        for row in elsewhere
    )


def _refuse(absent: list[WeightsRow], done: str) -> None:
    if absent:
        reasons = "\n".join(f"{row.name}: {row.reason}" for row in absent)
        raise StudyError(f"weights are not there, so nothing is {done}:\n{reasons}\nsee: fluence weights STUDY")
