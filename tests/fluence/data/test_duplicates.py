"""Copies that were saved again, resized, retouched or mirrored are found; other faces are not."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fluence.data import duplicates
from fluence.data.duplicates import near_duplicates, perceptual_hash, thumbnails
from fluence.data.synthetic import render_face
from fluence.study import SyntheticDataset

SIDE = 64


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    settings = SyntheticDataset(kind="synthetic", num_images=40)
    return np.stack([render_face(settings, index, SIDE) for index in range(40)])


def saved_again(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=60)
    return Image.open(file).convert("RGB")


CHANGES = {
    "saved as JPEG": saved_again,
    "resized": lambda image: image.resize((40, 40)).resize((SIDE, SIDE)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "less colourful": lambda image: ImageEnhance.Color(image).enhance(0.5),
    "sharpened": lambda image: ImageEnhance.Sharpness(image).enhance(2),
}


def changed(face: np.ndarray, change: str) -> np.ndarray:
    return np.asarray(CHANGES[change](Image.fromarray(face)))


@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_found_and_nothing_else(faces, change, is_mirrored):
    copies = np.stack([changed(face, change) for face in faces[:10]])
    copies = copies[:, :, ::-1] if is_mirrored else copies
    found = list(near_duplicates(thumbnails(np.concatenate([faces, copies]))))
    assert [(copy.image, copy.original) for copy in found] == [(40 + k, k) for k in range(10)]
    assert all(0.98 <= copy.correlation <= 1 for copy in found)
    assert [copy.is_mirrored for copy in found] == [is_mirrored] * 10


def test_the_first_of_several_copies_is_named(faces):
    found = near_duplicates(thumbnails(np.concatenate([faces[:3], faces[1:2], faces[1:2, :, ::-1]])))
    assert [(copy.image, copy.original) for copy in found] == [(3, 1), (4, 1)]


def test_blocks_change_nothing(faces, monkeypatch):
    small = thumbnails(np.concatenate([faces, faces[::-1], faces[3:9, :, ::-1]]))
    whole = list(near_duplicates(small))
    assert len(whole) == 46
    monkeypatch.setattr(duplicates, "_BLOCK_IMAGES", 7)
    assert list(near_duplicates(small)) == whole


def test_hundreds_of_copies_of_one_picture_all_name_the_first(faces, monkeypatch):
    """As of a camera that never moved, also where copies and their original lie in different blocks."""
    small = thumbnails(np.concatenate([faces[:1], np.repeat(faces[1:2], 300, axis=0)]))
    monkeypatch.setattr(duplicates, "_BLOCK_IMAGES", 64)
    assert [(copy.image, copy.original) for copy in near_duplicates(small)] == [(image, 1) for image in range(2, 301)]


def test_a_candidate_whose_thumbnail_differs_is_no_copy(faces):
    """The hash sees low frequencies only: noise leaves it, and takes the correlation away."""
    small = thumbnails(faces[:1]).astype(float)
    checks = 70 * (np.indices(small.shape[1:]).sum(0) % 2 - 0.5)
    pair = np.clip(np.concatenate([small, small + checks]), 0, 255).astype(np.uint8)
    assert (perceptual_hash(pair)[0] != perceptual_hash(pair)[1]).sum() <= duplicates.MOST_BITS
    assert not list(near_duplicates(pair))


@pytest.mark.parametrize("number", [0, 1, 5])
def test_images_of_one_grey_are_copies_of_nothing(number):
    """Exact copies have the same hash of their pixels; there is nothing that a perceptual hash could add."""
    assert not list(near_duplicates(thumbnails(np.full((number, SIDE, SIDE, 3), 90, np.uint8))))


def test_thumbnails_by_hand():
    """White and pure green squares: 255 and .7152 · 255; an odd size is averaged too."""
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    pixels[:, :32], pixels[:, 32:, :, 1] = 255, 255
    small = thumbnails(pixels)
    assert small.shape == (1, 32, 32)
    assert (small[0, :16] == 255).all()
    assert (small[0, 16:] == 182).all()
    assert thumbnails(np.full((2, 45, 45, 3), 200, np.uint8)).tolist() == np.full((2, 32, 32), 200).tolist()
    assert thumbnails(np.full((1, 8, 8, 3), 7, np.uint8)).tolist() == np.full((1, 32, 32), 7).tolist()


def test_hash_is_that_of_cosines_written_out(faces):
    small = thumbnails(faces[:2])
    angles = math.pi / 32 * np.outer(np.arange(8), np.arange(32) + 0.5)
    cosines = np.cos(angles) * np.where(np.arange(8) == 0, math.sqrt(1 / 32), math.sqrt(2 / 32))[:, None]
    for image, bits in zip(small.astype(float), perceptual_hash(small), strict=True):
        frequencies = (cosines @ image @ cosines.T).ravel()[1:]
        assert bits.tolist() == (frequencies > np.median(frequencies)).tolist()
        assert bits.sum() == 31  # of 63, those above the one in the middle
