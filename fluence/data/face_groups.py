"""The groups that synthetic faces belong to, and how they differ.

Two things decide a face's distributions: an ethnicity-like *cluster*, one row of `CLUSTERS`, and a sex-like group,
`FEMALE` or `MALE`. Clusters are named by letters because they copy no people: they only differ from each other as
much as groups in a face database do, in skin, hair and shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Colour = tuple[float, float, float]
HairStyle = Literal["bald", "buzz", "short", "bob", "long", "bun", "curly"]


@dataclass(frozen=True)
class Cluster:
    """Means of an ethnicity-like cluster."""

    skin: float  # from 0 (light) to 1 (dark)
    head_width: float
    eye_opening: float
    eye_slant: float
    nose_width: float
    lips: float  # factor of the lips' thickness
    hair: tuple[float, ...]  # probability of each colour of `HAIR`
    curly: float  # probability of curly hair
    freckled: float  # probability of freckles


CLUSTERS: dict[str, Cluster] = {
    "a": Cluster(0.12, 0.75, 0.105, 0.02, 0.135, 0.90, (0.15, 0.35, 0.20, 0.20, 0.10), 0.10, 0.45),
    "b": Cluster(0.78, 0.77, 0.110, 0.05, 0.185, 1.35, (0.80, 0.20, 0.00, 0.00, 0.00), 0.55, 0.05),
    "c": Cluster(0.28, 0.80, 0.082, 0.13, 0.150, 1.00, (0.75, 0.20, 0.05, 0.00, 0.00), 0.02, 0.10),
    "d": Cluster(0.45, 0.76, 0.112, 0.06, 0.160, 1.10, (0.55, 0.40, 0.05, 0.00, 0.00), 0.20, 0.10),
    "e": Cluster(0.62, 0.74, 0.108, 0.09, 0.150, 1.05, (0.85, 0.15, 0.00, 0.00, 0.00), 0.10, 0.05),
    "f": Cluster(0.20, 0.72, 0.095, -0.05, 0.145, 0.80, (0.05, 0.15, 0.30, 0.30, 0.20), 0.25, 0.60),
}


@dataclass(frozen=True)
class SexLike:
    """Means of a sex-like group."""

    taper: float
    squareness: float
    neck: float
    eyes: float  # factor of the eyes' opening
    lashes: float
    brow_height: float
    brow_thickness: float
    lips: float  # factor of the lips' thickness
    lip_colour: float  # how much redder than the skin
    styles: dict[HairStyle, float]  # weight of each hairstyle; curly is drawn by the cluster
    beard: float  # probability of a beard


FEMALE = SexLike(
    0.26, 2.05, 0.27, 1.10, 0.020, 0.27, 0.024, 1.10, 0.75, {"long": 4, "bob": 3, "bun": 2, "short": 1}, 0.0
)
MALE = SexLike(
    0.14, 2.35, 0.36, 0.92, 0.011, 0.23, 0.040, 0.85, 0.40, {"short": 6, "buzz": 2, "bald": 1, "bob": 1}, 0.4
)
SEXES: dict[str, SexLike] = {"female": FEMALE, "male": MALE}

SKIN = np.array(
    [
        [0.98, 0.86, 0.78],
        [0.95, 0.78, 0.66],
        [0.87, 0.67, 0.52],
        [0.72, 0.50, 0.36],
        [0.53, 0.35, 0.25],
        [0.36, 0.23, 0.17],
    ]
)
HAIR: tuple[Colour, ...] = (
    (0.11, 0.09, 0.09),
    (0.27, 0.17, 0.11),
    (0.49, 0.31, 0.17),
    (0.84, 0.66, 0.38),
    (0.66, 0.29, 0.13),
)
IRISES: tuple[Colour, ...] = ((0.28, 0.17, 0.10), (0.42, 0.27, 0.12), (0.30, 0.42, 0.24), (0.27, 0.47, 0.62))
