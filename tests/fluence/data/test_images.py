from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fluence.data.images import ResidentImages, rows_of_group, split_rows
from fluence.errors import StudyError

CPU = torch.device("cpu")


def table(num_images: int, **columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame({"image_id": [f"i{k}" for k in range(num_images)], **columns})


def pixels(num_images: int, size: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num_images, size, size, 3), dtype=np.uint8)


# ── Groups ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_group_is_found_by_its_slug_and_all_is_everybody():
    people = table(4, ethnicity=["East Asian", "Black", "East Asian", ""], sex=["Female", "Male", "female ", "Female"])
    assert rows_of_group(people, "east_asian-female", ("ethnicity", "sex")).tolist() == [0, 2]
    assert rows_of_group(people, "male-black", ("sex", "ethnicity")).tolist() == [1]
    assert rows_of_group(people, "all", ("ethnicity", "sex")).tolist() == [0, 1, 2, 3]
    assert rows_of_group(people, "martian-female", ("ethnicity", "sex")).tolist() == []


def test_group_by_a_missing_column_says_which():
    with pytest.raises(StudyError, match=r"no column 'sex'.*there are: image_id, ethnicity"):
        rows_of_group(table(1, ethnicity=["x"]), "x-y", ("ethnicity", "sex"))


# ── The split ────────────────────────────────────────────────────────────────────────────────────────────────────


@given(num_images=st.integers(1, 200), fraction=st.floats(0, 0.89), skip=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_split_divides_the_rows_and_leaves_something_to_learn_from(num_images, fraction, skip):
    rows = np.arange(0, num_images, skip)
    split = split_rows(table(num_images), rows, fraction)
    assert sorted([*split.training, *split.validation]) == rows.tolist()
    assert len(split.training) >= 1
    assert (len(split.validation) >= 1) == (fraction > 0 and len(rows) > 1)


def test_split_takes_about_the_fraction_and_does_not_depend_on_who_else_is_there():
    """Mistake: unshuffled split."""
    many = table(4000)
    everybody = split_rows(many, np.arange(4000), 0.25)
    assert len(everybody.validation) == pytest.approx(1000, abs=4 * np.sqrt(4000 * 0.25 * 0.75))
    half = split_rows(many, np.arange(0, 4000, 2), 0.25)
    assert set(half.validation) == {row for row in everybody.validation if row % 2 == 0}


def test_split_keeps_a_person_and_duplicates_together():
    people = [float(k // 10) for k in range(200)]
    split = split_rows(table(200, person_id=people), np.arange(200), 0.3)
    assert not {people[k] for k in split.training} & {people[k] for k in split.validation}
    originals = table(200, duplicate_of=["" if k < 100 else f"i{k - 100}" for k in range(200)])
    split = split_rows(originals, np.arange(200), 0.3)
    assert not {k % 100 for k in split.training} & {k % 100 for k in split.validation}


def test_split_column_decides_if_it_is_filled():
    words = table(5, split=["train", "val", "TEST", "", "validation"])
    split = split_rows(words, np.arange(5), 0.0)
    assert (split.training.tolist(), split.validation.tolist()) == ([0, 3], [1, 2, 4])
    empty = split_rows(table(50, split=[""] * 50), np.arange(50), 0.2)
    assert empty.validation.tolist() == split_rows(table(50), np.arange(50), 0.2).validation.tolist()
    with pytest.raises(StudyError, match=r"'dev' is not understood; allowed: train"):
        split_rows(table(1, split=["dev"]), np.arange(1), 0.1)


# ── Images on the device ─────────────────────────────────────────────────────────────────────────────────────────


def test_batch_is_the_bytes_over_255_channels_last_and_mirrored_where_asked():
    faces = pixels(5)
    batch = ResidentImages(faces, CPU).batch(torch.tensor([3, 0]), torch.tensor([True, False]))
    expected = np.stack([faces[3][:, ::-1], faces[0]]).transpose(0, 3, 1, 2) / np.float32(255)
    assert batch.dtype == torch.float32
    assert np.array_equal(batch.numpy(), expected)
    assert batch.is_contiguous(memory_format=torch.channels_last)
