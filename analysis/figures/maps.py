"""Colour scales of numbers, readable by the colour-blind and in grey, and tables of numbers painted with them."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize

from analysis.figures.plate import INK

SEQUENTIAL: Colormap = colormaps["cividis"]
"""From little to much."""
DIVERGING: Colormap = LinearSegmentedColormap.from_list(
    "blue-orange", ["#08306b", "#0072B2", "#9ecae1", "#f7f7f7", "#f9c27b", "#D55E00", "#6b2c00"]
)
"""Negative to positive, white at zero."""
UNKNOWN = "#d9d9d9"
"""Where there is no number."""


def paint(axes: Axes, values: np.ndarray, colours: Colormap, scale: Normalize) -> QuadMesh:
    """A matrix as squares, the first row on top; grey where there is no number. Not an image: it stays sharp in PDF."""
    between = 0.4 if max(values.shape) <= 24 else 0.1
    mesh = axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=scale, linewidth=between, edgecolor="white")
    axes.set_facecolor(UNKNOWN)
    axes.set_ylim(len(values), 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def ink_on(colour: tuple[float, ...]) -> str:
    """White or dark letters, whichever is read better on a colour."""
    red, green, blue = colour[:3]
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"
