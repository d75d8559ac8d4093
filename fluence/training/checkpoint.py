"""Checkpoints that prove themselves: `step-00000123-<first digits of the SHA-256 of its bytes>.pt`."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import torch

from fluence.errors import ArtifactError
from fluence.store.files import atomic_path

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The checkpoints of one training, in one folder. One process writes; the last two are kept.

    Args:
        folder: where they are.
        key: what the training was made of; checkpoints with another key are another training's.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key
        self._kept: list[Path] = []

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Writes a state of tensors and plain containers, then removes what is older than the one before.

        Raises:
            ArtifactError: the disk is full or the folder is not writable.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "key": self._key, **state}, buffer)
        content = buffer.getbuffer()
        path = self._folder / f"step-{step:08d}-{_digest(content)}.pt"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        self._keep(path)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint of this training that is whole; says on stderr which ones it had to pass over."""
        for temporary in self._folder.glob(".step-*.tmp"):
            temporary.unlink(missing_ok=True)
        for path in sorted(self._found(), key=_age, reverse=True):
            try:
                self.load(path)
            except ArtifactError as error:
                print(f"fluence: {error}", file=sys.stderr)
                continue
            self._keep(path)
            return path
        return None

    def load(self, path: Path) -> dict[str, Any]:
        """Reads a checkpoint to the CPU.

        Raises:
            ArtifactError: it is damaged, of another format, or of another training.
        """
        content = path.read_bytes()
        match = _NAME.fullmatch(path.name)
        if match is None or _digest(content) != match[2]:
            raise ArtifactError(f"{path}: this checkpoint is damaged; going back to the one before")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        if (state["format"], state["key"]) != (FORMAT, self._key):
            raise ArtifactError(f"{path}: this checkpoint was made with other settings or data; it is left aside")
        return state

    def _found(self) -> list[Path]:
        return [path for path in self._folder.glob("step-*.pt") if _NAME.fullmatch(path.name)]

    def _keep(self, path: Path) -> None:
        """Keeps `path` and the one that was kept before it.

        Nothing is removed before a second one of this training is whole.
        """
        self._kept = [*(kept for kept in self._kept if kept != path), path][-2:]
        if len(self._kept) == 2:
            for old in set(self._found()) - set(self._kept):
                old.unlink(missing_ok=True)


def _age(path: Path) -> tuple[int, int]:
    """Step, and when it was written: before and after the end of an epoch the step is the same."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]) if match else -1, path.stat().st_mtime_ns)


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
