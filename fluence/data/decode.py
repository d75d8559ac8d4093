"""One image file becomes one square of uint8 pixels, never stretched.

Rules, so that two people pack the same pixels:

* orientation: the EXIF tag is obeyed.
* colours: taken as sRGB, embedded colour profiles are not applied; grey and palette become RGB; CMYK by Pillow's
  formula; transparent parts are laid on white, as cut-out faces usually are; 16-bit values are scaled by 257.
* animated files: the first frame.
* shape: `crop` cuts the centre square; `pad` centres the whole image on grey (128), its sides rounded to whole pixels.
* size: Lanczos resampling with antialiasing, from the full resolution.
"""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

VERSION = 1
"""Changes whenever the same file would give other pixels."""

Fit = Literal["crop", "pad"]

_WHITE = (255, 255, 255, 255)
_GREY = (128, 128, 128)
_MOST_PIXELS = 89_478_485  # Pillow's own limit, above which it suspects a decompression bomb
_TOO_LARGE = "above 89 megapixels; scale it down"


class Undecodable(Exception):
    """A file that holds no usable image; the text says why."""


def decode(path: Path, size_px: int, fit: Fit) -> np.ndarray:
    """Reads an image file as a square, uint8 [size_px, size_px, 3], RGB.

    Raises:
        Undecodable: the file is missing, empty, truncated, no image, or too large.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # broken EXIF blocks and the like, which do not touch the pixels
        try:
            with Image.open(path) as image:
                return np.asarray(_square(_upright_rgb(image), size_px, fit))
        except (Undecodable, MemoryError):
            raise
        except Exception as error:  # decoders raise anything on damaged files, and one file may not stop a packing
            raise Undecodable(_reason(path, error)) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.width * image.height > _MOST_PIXELS:
        raise Undecodable(_TOO_LARGE)
    image.load()
    with contextlib.suppress(Exception):  # a damaged EXIF block says nothing about the orientation
        ImageOps.exif_transpose(image, in_place=True)
    return _rgb(image)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise Undecodable("32-bit pixels have no known white; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, _WHITE)
        opaque.alpha_composite(image.convert("RGBA"))
        return opaque.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _square(image: Image.Image, size_px: int, fit: Fit) -> Image.Image:
    width, height = image.size
    if fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.resize((size_px, size_px), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    scale = size_px / max(width, height)
    inner = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.new("RGB", (size_px, size_px), _GREY)
    canvas.paste(image.resize(inner, Image.Resampling.LANCZOS), ((size_px - inner[0]) // 2, (size_px - inner[1]) // 2))
    return canvas


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, IsADirectoryError):
        return "a folder, not an image"
    if isinstance(error, PermissionError):
        return "may not be read"
    if isinstance(error, Image.DecompressionBombError):
        return _TOO_LARGE
    if path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return "truncated" if "truncated" in str(error).lower() else f"damaged ({str(error) or type(error).__name__})"
