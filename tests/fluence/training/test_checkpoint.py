from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fluence.errors import ArtifactError
from fluence.training.checkpoint import Checkpoints
from fluence.training.randomness import random_states, reproducible, restore_random_states


def state(value: int) -> dict[str, object]:
    return {"model": {"w": torch.full((100,), float(value))}, "value": value}


def filled(folder: Path, *steps: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, "key")
    for step in steps:
        checkpoints.save(step, state(step))
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(path.name[:13] for path in folder.iterdir())


def test_name_tells_the_step_and_proves_the_content(tmp_path):
    path = filled(tmp_path, 123).newest()
    assert path is not None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"step-00000123-{digest[:16]}.pt"


@pytest.mark.parametrize("value", range(6))
def test_of_two_checkpoints_of_one_step_the_later_one_is_newer(tmp_path, value):
    """One before and one after the end of an epoch; which hash comes first in the alphabet is chance."""
    checkpoints = Checkpoints(tmp_path, "key")
    checkpoints.save(4, state(value))
    time.sleep(0.02)
    later = checkpoints.save(4, state(value + 1))
    assert Checkpoints(tmp_path, "key").newest() == later


def test_newest_is_read_back_and_two_are_kept(tmp_path):
    filled(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    fresh = Checkpoints(tmp_path, "key")
    path = fresh.newest()
    assert path is not None
    assert fresh.load(path)["value"] == 3
    fresh.save(4, state(4))
    assert names(tmp_path) == ["step-00000003", "step-00000004"]
    assert Checkpoints(tmp_path / "nowhere", "key").newest() is None


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, capsys, damage):
    filled(tmp_path, 1, 2)
    path = max(tmp_path.iterdir())
    content = path.read_bytes()
    broken = {"truncate": content[: len(content) // 2], "empty": b"", "flip": _with_a_bit_flipped(content)}[damage]
    path.write_bytes(broken)
    fresh = Checkpoints(tmp_path, "key")
    before = fresh.newest()
    assert before is not None
    assert fresh.load(before)["value"] == 1
    assert f"{path}: this checkpoint is damaged; going back to the one before" in capsys.readouterr().err


def _with_a_bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_checkpoint_of_other_settings_is_left_aside_until_two_of_our_own_are_whole(tmp_path, capsys):
    filled(tmp_path, 50, 99)
    other = Checkpoints(tmp_path, "other key")
    assert other.newest() is None
    assert capsys.readouterr().err.count("made with other settings or data; it is left aside") == 2
    other.save(1, state(1))
    assert names(tmp_path) == ["step-00000001", "step-00000050", "step-00000099"]
    other.save(2, state(2))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def test_leftovers_of_a_killed_process_are_swept_up(tmp_path):
    filled(tmp_path, 1)
    (tmp_path / ".step-00000002-0123456789abcdef.pt.77.tmp").write_bytes(b"half")
    assert Checkpoints(tmp_path, "key").newest() is not None
    assert names(tmp_path) == ["step-00000001"]


@pytest.mark.parametrize(("number", "word"), [(28, "the disk is full"), (122, "the quota is used up")])
def test_full_disk_is_explained_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, number, word):
    checkpoints = filled(tmp_path, 1)

    def no_space(self: Path, content: bytes) -> int:
        raise OSError(number, "no space")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(ArtifactError, match=word):
        checkpoints.save(2, state(2))
    assert names(tmp_path) == ["step-00000001"]


def draws() -> tuple[float, float, float, float]:
    np_normal = np.random.standard_normal()  # noqa: NPY002
    return torch.rand(()).item(), torch.randn(3)[0].item(), np_normal, random.gauss(0, 1)


def test_random_states_come_back_through_a_checkpoint(tmp_path):
    draws()  # an odd number of normal draws leaves half of a pair in the generators
    checkpoints = Checkpoints(tmp_path, "key")
    path = checkpoints.save(1, {"random_states": random_states()})
    expected = [draws() for _ in range(3)]
    restore_random_states(checkpoints.load(path)["random_states"])
    assert [draws() for _ in range(3)] == expected


def test_reproducible_seeds_everything_and_leaves_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with reproducible(3, torch.device("cpu")):
        first = draws()
        assert torch.are_deterministic_algorithms_enabled()
    with reproducible(3, torch.device("cpu")):
        assert draws() == first
    with reproducible(4, torch.device("cpu")):
        assert draws() != first
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), before)
