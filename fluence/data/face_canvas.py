"""What synthetic faces are painted on, and the shapes that they are painted with.

Every shape is a signed distance, negative inside; a pixel is covered by the share of it that lies inside, which
antialiases every border. Source: Quilez, "2D distance functions".
"""

from __future__ import annotations

import numpy as np

from fluence.data.face_groups import Colour
from fluence.data.face_parameters import Pose

Array = np.ndarray


# ── The canvas ───────────────────────────────────────────────────────────────────────────────────────────────────


class Canvas:
    """Pixels that know where they are.

    Attributes:
        image: float32 [3, size, size], RGB between 0 and 1.
        frame_x, frame_y: float32 [size, size], place in the image, from -1 to 1.
        x, y: float32 [size, size], place on the face, in half head heights; y points down.
        pixel: side of a pixel in the units of x and y.
        figure: float32 [size, size], the share of each pixel painted since the background was finished.
    """

    def __init__(self, size_px: int, pose: Pose) -> None:
        centres = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
        self.frame_x, self.frame_y = np.meshgrid(centres, centres)
        across, down = self.frame_x - pose.centre[0], self.frame_y - pose.centre[1]
        cos, sin = np.cos(pose.tilt) / pose.scale, np.sin(pose.tilt) / pose.scale
        self.x, self.y = (
            (cos * across + sin * down).astype(np.float32),
            (cos * down - sin * across).astype(np.float32),
        )
        self.pixel = np.float32(2 / size_px / pose.scale)
        self.image = np.zeros((3, size_px, size_px), dtype=np.float32)
        self.figure = np.zeros((size_px, size_px), dtype=np.float32)

    def inside(self, distance: Array, softness: float = 0.0) -> Array:
        """Share of each pixel inside a shape: [size, size], 0 to 1; softness blurs the border."""
        return np.clip(0.5 - distance / (self.pixel + np.float32(softness)), 0, 1)

    def along(self, offset: Array, half_width: Array | float) -> Array:
        """Share of each pixel inside a stroke: offset is the distance from its middle line, with its sign."""
        reach = np.maximum(half_width, 0)
        upper = np.clip(0.5 + (reach - offset) / self.pixel, 0, 1)
        return upper - np.clip(0.5 - (reach + offset) / self.pixel, 0, 1)

    def paint(self, cover: Array, colour: Colour | Array) -> None:
        """Lay a colour, one or one per pixel ([3, size, size]), over the image with a cover from 0 to 1."""
        paint = np.asarray(colour, dtype=np.float32)
        np.maximum(self.figure, cover, out=self.figure)
        self.image += cover * ((paint if paint.ndim == 3 else paint[:, None, None]) - self.image)

    def shade(self, strength: Array) -> None:
        """Brighten (above 0) or darken (below 0) by a factor per pixel."""
        self.image *= 1 + strength


# ── Shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def ellipse(x: Array, y: Array, half_width: float, half_height: float) -> Array:
    """Signed distance from an ellipse around the origin, exact at its border to first order."""
    scaled = np.hypot(x / half_width, y / half_height)
    slope = np.hypot(x / half_width**2, y / half_height**2)
    return scaled * (scaled - 1) / np.maximum(slope, 1e-6)


def box(x: Array, y: Array, half_width: float, half_height: float, radius: float) -> Array:
    """Signed distance from a box with rounded corners around the origin."""
    beyond_x, beyond_y = np.abs(x) - (half_width - radius), np.abs(y) - (half_height - radius)
    outside = np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0))
    return outside + np.minimum(np.maximum(beyond_x, beyond_y), 0) - radius


def glow(x: Array, y: Array, width: float, height: float) -> Array:
    """A soft spot around the origin, 1 in its middle."""
    return np.exp(-((x / width) ** 2) - (y / height) ** 2)
