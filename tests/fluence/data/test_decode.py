"""From a file to a square of pixels: colours, orientation, shape, and files that are none."""

from __future__ import annotations

import contextlib
import io
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluence.data.decode import Undecodable, decode

RED, GREEN, BLUE, WHITE, GREY = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def solid(mode: str, size: tuple[int, int], colour) -> Image.Image:
    return Image.new(mode, size, colour)


def saved(tmp_path, image: Image.Image, name: str = "image.png", **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def halves(left, right, size=(16, 16)) -> Image.Image:
    image = solid("RGB", size, left)
    image.paste(right, (size[0] // 2, 0, size[0], size[1]))
    return image


# ── Colours ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (solid("L", (9, 9), 77), "a.png", (77, 77, 77)),
        (solid("LA", (9, 9), (77, 255)), "a.png", (77, 77, 77)),
        (solid("1", (9, 9), 1), "a.png", WHITE),
        (solid("RGB", (9, 9), (10, 200, 30)).quantize(4), "a.png", (10, 200, 30)),
        (solid("RGBA", (9, 9), (255, 0, 0, 0)), "a.png", WHITE),
        (solid("RGBA", (9, 9), (255, 0, 0, 51)), "a.png", (255, 204, 204)),
        (solid("I;16", (9, 9), 65535), "a.png", WHITE),
        (solid("I;16", (9, 9), 100 * 257 + 100), "a.png", (100, 100, 100)),
        (solid("I;16", (9, 9), 100 * 257), "a.tif", (100, 100, 100)),
        (solid("CMYK", (9, 9), (0, 255, 255, 0)), "a.tif", RED),
        (solid("RGB", (9, 9), RED), "a.bmp", RED),
    ],
    ids=["grey", "grey alpha", "bilevel", "palette", "clear", "translucent", "16 bit", "16 bit rounded", "16 bit tiff",
         "cmyk", "bmp"],
)  # fmt: skip
def test_every_kind_of_colour_becomes_rgb(tmp_path, image, name, expected):
    pixels = decode(saved(tmp_path, image, name), 4, "crop")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 4, 3)
    assert np.array_equal(np.unique(pixels.reshape(-1, 3), axis=0), [expected])


def test_a_palette_with_a_clear_colour_lies_on_white(tmp_path):
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    path = saved(tmp_path, palette, "a.png", transparency=0)
    assert np.all(decode(path, 4, "crop") == 255)


def test_a_cmyk_jpeg_keeps_its_colours(tmp_path):
    path = saved(tmp_path, solid("CMYK", (16, 16), (0, 255, 255, 0)), "a.jpg", quality=95)
    assert np.allclose(decode(path, 4, "crop"), RED, atol=6)


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [solid("RGB", (8, 8), colour) for colour in (BLUE, GREEN)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert np.all(decode(path, 4, "crop") == BLUE)


def test_32_bit_pixels_are_refused(tmp_path):
    with pytest.raises(Undecodable, match="32-bit"):
        decode(saved(tmp_path, solid("F", (8, 8), 0.5), "a.tif"), 4, "crop")


# ── Orientation and shape ────────────────────────────────────────────────────────────────────────────────────────

TRANSPOSES = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that notes each EXIF orientation has turned the upright scene before saving it."""


@pytest.mark.parametrize("orientation", TRANSPOSES)
def test_exif_orientation_is_obeyed(tmp_path, orientation):
    upright = solid("RGB", (16, 16), WHITE)
    upright.paste(RED, (0, 0, 8, 8))
    upright.paste(BLUE, (8, 0, 16, 8))
    stored = upright if TRANSPOSES[orientation] is None else upright.transpose(TRANSPOSES[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, stored, "a.png", exif=exif)
    assert np.array_equal(decode(path, 16, "crop"), np.asarray(upright))


def test_a_crop_is_the_centre(tmp_path):
    """Mistake: images stretched."""
    wide = solid("RGB", (90, 30), RED)
    wide.paste(GREEN, (30, 0, 60, 30))
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    for image in (wide, tall):
        pixels = decode(saved(tmp_path, image), 10, "crop")
        assert np.all(pixels[3:-3, 3:-3] == GREEN)
        assert pixels[..., 1].min() > 200  # the filter sees a little of the red beyond the cut, as it should
    assert np.array_equal(decode(saved(tmp_path, wide), 30, "crop"), np.full((30, 30, 3), GREEN))


def test_padding_is_grey_and_centred(tmp_path):
    pixels = decode(saved(tmp_path, solid("RGB", (20, 10), GREEN)), 8, "pad")
    assert np.all(pixels[2:6] == GREEN)
    assert np.all(pixels[[0, 1, 6, 7]] == GREY)


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (61, 87), (200, 64)])
def test_a_circle_stays_a_circle(tmp_path, size, fit):
    """The width and height of a disc agree after packing: nothing is stretched."""
    y, x = np.mgrid[: size[1], : size[0]]
    disc = (x - (size[0] - 1) / 2) ** 2 + (y - (size[1] - 1) / 2) ** 2 <= 25**2
    path = saved(tmp_path, Image.fromarray((disc * 255).astype(np.uint8)))
    bright = decode(path, 32, fit)[..., 0] > 190
    width, height = bright.any(axis=0).sum(), bright.any(axis=1).sum()
    scale = 32 / (min(size) if fit == "crop" else max(size))
    assert abs(int(width) - int(height)) <= 1
    assert abs(width - 51 * scale) <= 2


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70), height=st.integers(1, 70), size=st.integers(1, 40), fit=st.sampled_from(["crop", "pad"])
)
def test_any_size_becomes_the_square_asked_for(tmp_path_factory, width, height, size, fit):
    path = saved(tmp_path_factory.mktemp("size"), solid("RGB", (width, height), (9, 99, 200)))
    pixels = decode(path, size, fit)
    assert pixels.shape == (size, size, 3)
    assert tuple(pixels[(size - 1) // 2, (size - 1) // 2]) == (9, 99, 200)


def test_shrinking_is_antialiased(tmp_path):
    """Stripes finer than the new pixels become their mean; taking every n-th pixel would keep black and white."""
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(saved(tmp_path, Image.fromarray(stripes)), 8, "crop").astype(int)
    assert np.abs(pixels[:, 1:-1] - 127.5).max() < 8


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    original = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    assert np.array_equal(decode(saved(tmp_path, Image.fromarray(original)), 12, "crop"), original)


# ── Files that are no images ─────────────────────────────────────────────────────────────────────────────────────


def jpeg() -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>404 Not Found</html>", "not an image"),
        (jpeg()[: len(jpeg()) // 2], "truncated"),
        (png()[: len(png()) // 2], "truncated"),
        (jpeg()[:4], "not an image"),
        (png()[:60] + b"\0" * 200 + png()[260:], "damaged|truncated"),
    ],
    ids=["empty", "html", "half a jpeg", "half a png", "four bytes", "damaged png"],
)
def test_unusable_files_say_why(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(Undecodable, match=reason):
        decode(tmp_path / "a.jpg", 8, "crop")


def test_missing_files_and_folders_say_so(tmp_path):
    with pytest.raises(Undecodable, match=r"^missing$"):
        decode(tmp_path / "none.jpg", 8, "crop")
    with pytest.raises(Undecodable, match="a folder"):
        decode(tmp_path, 8, "crop")


def test_decompression_bombs_are_not_opened(tmp_path):
    """The header promises 20,000 × 20,000 pixels; believing it would take 1.2 GB."""
    content = bytearray(png())
    content[16:24] = (20_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Undecodable, match="megapixels"):
        decode(tmp_path / "a.png", 8, "crop")
    content[16:24] = (10_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(Undecodable, match="megapixels"):
        decode(tmp_path / "a.png", 8, "crop")


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 5000), junk=st.binary(min_size=1, max_size=30), make=st.sampled_from([jpeg, png]))
def test_damage_never_raises_anything_else(tmp_path_factory, position, junk, make):
    content = make()
    position %= len(content)
    path = tmp_path_factory.mktemp("damaged") / "a.img"
    path.write_bytes(content[:position] + junk + content[position + len(junk) :])
    with contextlib.suppress(Undecodable):
        assert decode(path, 8, "crop").shape == (8, 8, 3)
