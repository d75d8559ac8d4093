"""The code that submitted jobs run with: a copy in the study's folder, so that they never see a later edit."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from fluence.layout import Layout
from fluence.store.files import explained
from fluence.store.outcome import COMMIT, code_commit

PACKAGES = ("fluence", "analysis", "jobs")
_HERE = Path(__file__).resolve().parent.parent


def code_folder(layout: Layout, root: Path = _HERE) -> Path:
    """Where the present code is copied to: `tasks/code/<hash of its files>`."""
    return _target(_contents(root), layout)


def freeze_code(layout: Layout, root: Path = _HERE) -> Path:
    """Copies the packages to `code_folder`, unless that copy is there already.

    Args:
        layout: the study's folder.
        root: the folder that holds the packages.

    Returns:
        The folder to put first on the path of workers.

    Raises:
        UnwritableError: the study's folder is not writable.
    """
    contents = _contents(root)
    target = _target(contents, layout)
    if not target.exists():
        with explained(target):
            _write(contents, target)
    return target


def _contents(root: Path) -> dict[Path, bytes]:
    return {path.relative_to(root): path.read_bytes() for path in sorted(_files(root))}


def _target(contents: dict[Path, bytes], layout: Layout) -> Path:
    digest = hashlib.sha256()
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    return layout.code(digest.hexdigest()[:16])


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                yield path


def _write(contents: dict[Path, bytes], target: Path) -> None:
    """Writes a copy under another name first: a folder with the right name is whole."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for path, content in contents.items():
        (unfinished / path).parent.mkdir(parents=True, exist_ok=True)
        (unfinished / path).write_bytes(content)
    (unfinished / COMMIT).write_text(f"{code_commit()}\n", encoding="utf-8")
    try:
        unfinished.rename(target)
    except OSError:
        shutil.rmtree(unfinished)
        if not target.exists():
            raise
