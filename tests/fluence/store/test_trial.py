"""Locks of a file system: held by one, noticed by others."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path

import pytest

from fluence.store.trial import held_lock, lock_trouble


def test_a_lock_that_is_held_is_noticed(tmp_path: Path) -> None:
    with held_lock(tmp_path / "lock") as trouble:
        assert (trouble, lock_trouble(tmp_path / "lock")) == ("", "")
    assert "could be locked here, too" in lock_trouble(tmp_path / "lock")
    assert lock_trouble(tmp_path / "nobody-could-lock") == ""


def test_a_file_system_without_any_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / "there").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with held_lock(tmp_path / "lock") as trouble:
        assert (trouble, (tmp_path / "lock").exists()) == ("No locks available", False)
    assert lock_trouble(tmp_path / "there") == "No locks available"
