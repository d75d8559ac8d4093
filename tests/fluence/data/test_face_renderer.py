"""The drawing of faces: every size, the same face, antialiased, and groups that differ."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fluence.data.face_canvas import box, ellipse
from fluence.data.face_groups import CLUSTERS, SEXES
from fluence.data.face_parameters import Face, Waves, sample_face
from fluence.data.face_renderer import LUMINANCE, covered, draw, plane_waves, textured


def faces(ethnicity: str, sex: str, count: int = 60) -> list[Face]:
    return [sample_face(np.random.default_rng(seed), ethnicity, sex) for seed in range(count)]


@pytest.mark.parametrize("size_px", [16, 33, 64, 224])
def test_every_size_renders(size_px: int) -> None:
    for index, face in enumerate(faces("a", "female", 6) + faces("b", "male", 6)):
        pixels = draw(face, size_px)
        assert pixels.shape == (size_px, size_px, 3), index
        assert pixels.dtype == np.uint8
        assert pixels.std() > 5


def test_every_size_shows_the_same_face() -> None:
    for face in faces("d", "female", 5):
        large = Image.fromarray(draw(face, 128)).resize((32, 32), Image.Resampling.BOX)
        difference = np.asarray(large, dtype=float) - draw(face, 32)
        assert np.sqrt((difference**2).mean()) < 16


def test_all_kinds_of_hair_and_backdrop_are_drawn() -> None:
    drawn = [face for ethnicity in CLUSTERS for sex in SEXES for face in faces(ethnicity, sex, 25)]
    for face in drawn:
        draw(face, 16)
    assert {face.hair.style for face in drawn} == {"bald", "buzz", "short", "bob", "long", "bun", "curly"}
    assert {face.scene.backdrop for face in drawn} == {"plain", "gradient", "spotlight", "bokeh"}


def test_groups_differ_in_their_parameters() -> None:
    def mean(ethnicity: str, sex: str, value: str) -> float:
        read = {
            "darkness": lambda face: -sum(face.head.skin),
            "slant": lambda face: face.eyes.slant,
            "jaw": lambda face: -face.head.taper,
            "brows": lambda face: face.brows.thickness,
        }[value]
        return float(np.mean([read(face) for face in faces(ethnicity, sex)]))

    assert mean("b", "female", "darkness") > mean("a", "female", "darkness") + 0.5
    assert mean("c", "male", "slant") > mean("f", "male", "slant") + 0.1
    assert mean("a", "male", "jaw") > mean("a", "female", "jaw") + 0.05
    assert mean("a", "male", "brows") > mean("a", "female", "brows") + 0.005


def test_the_texture_keeps_mean_and_contrast() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, 0.7, (3, 64, 64)).astype(np.float32)
    texture = sample_face(rng, "a", "female").texture
    result = textured(image, np.zeros((64, 64), dtype=np.float32), texture)
    before, after = np.tensordot(LUMINANCE, image, 1), np.tensordot(LUMINANCE, result, 1)
    assert after.mean() == pytest.approx(before.mean(), abs=0.02)
    assert after.std() == pytest.approx(before.std(), rel=0.1)


def test_more_texture_covers_more() -> None:
    texture = sample_face(np.random.default_rng(3), "a", "female").texture
    shares = [covered(type(texture)(amount, texture.grain, texture.patches), 64).mean() for amount in (0, 0.3, 0.7, 1)]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[3] > 0.99


def test_a_plane_wave_is_a_cosine_and_fine_ones_vanish() -> None:
    size = 32
    wave = plane_waves(Waves(np.array([[2.0, 0.0]]), np.array([0.0])), size)
    place = (np.arange(size) + 0.5) / size
    expected = np.sqrt(2) * np.sinc(2 / size) * np.cos(2 * np.pi * 2 * place)
    assert np.allclose(wave, expected[None, :], atol=1e-5)
    assert not plane_waves(Waves(np.array([[0.0, 17.0]]), np.array([0.0])), size).any()


def test_distances() -> None:
    x, y = np.array([0.5, 0.0, 2.0, 0.25]), np.array([0.0, 0.25, 0.0, 0.0])
    assert np.allclose(ellipse(x, y, 0.5, 0.25)[:2], 0, atol=1e-9)
    assert ellipse(x, y, 0.5, 0.25)[2] > 1
    assert np.allclose(ellipse(x, y, 0.5, 0.5), np.hypot(x, y) - 0.5)
    assert np.allclose(box(x, y, 0.5, 0.25, 0.1), [0.0, 0.0, 1.5, -0.25], atol=1e-9)


def test_edges_are_antialiased() -> None:
    """A disc's painted area is right to a fraction of a pixel, which hard edges would miss."""
    centres = (np.arange(24) + 0.5) / 12 - 1
    x, y = np.meshgrid(centres, centres)
    cover = np.clip(0.5 - ellipse(x, y, 0.61, 0.61) * 12, 0, 1)
    assert cover.sum() / 144 == pytest.approx(np.pi * 0.61**2, rel=2e-3)
