"""The files below a folder, in an order that does not depend on the file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ENDINGS = frozenset(
    (
        *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""What operating systems leave behind; like hidden files, it is never meant."""


def files_below(root: Path) -> Iterator[str]:
    """Paths relative to `root`, sorted, links followed (each folder once), hidden files and litter left aside."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(filter(_meant, folders))
        relative = PurePosixPath(Path(folder).relative_to(root).as_posix())
        yield from (str(relative / name) for name in sorted(filter(_meant, names)))


def is_image(path: str) -> bool:
    """Whether the ending of a path is that of an image."""
    return PurePosixPath(path).suffix.lower() in ENDINGS


def _meant(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in LITTER
