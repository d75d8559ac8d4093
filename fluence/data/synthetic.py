"""Synthetic faces whose beauty has a known cause: the positive and the negative control of every analysis.

A study that plants an effect must find it, and one that plants none must find nothing.

**What is planted.** Each face *i* of group *g* has the property xᵢ, its edge sparsity (`edge_sparsity`), and

    truthᵢ = offset_g + √R² · zᵢ + √(1 − R²) · eᵢ,    zᵢ = (xᵢ − mean_g x) / sd_g x,    eᵢ ~ N(0, 1)

so that R² (`effect.r2`) is the share of the variance of true beauty *within* groups that the property explains, and
the groups themselves differ a little (`ETHNICITY_OFFSETS`, `SEX_OFFSETS`), as they do in face databases. Rater *j*
sees truthᵢ + s · eᵢⱼ with s = `rater_noise_sd`. Ratings are 4 + 0.8 × that: a scale like 1 to 7, neither rounded nor
clipped, so that the formulas stay exact. `beauty` is the mean of the m raters; no analysis can explain more than
1 / (1 + s²/m) of its variance within groups, and the property explains R² of that.

**Why it can be found.** The property is driven by how much of the backdrop, and faintly of the person, is mottled.
Measured on 600 faces of three clusters at 64 px, with the property standardised within groups: regressions on one Gini
per layer predict it with an out-of-fold R² of 0.78 and 0.80 (`small`, untrained, two seeds), 0.81 (`vgg16-5` of a
quarter of the width, untrained) and 0.92 (Gabor filters, then random convolutions). Its correlations within groups with
luminance mean (-0.09), luminance contrast (0.09) and pixel Gini (0.06) are small; the three together explain 0.03.

Chance comes from `numpy.random.SeedSequence(seed, spawn_key=(index, stream))`: a face and its ratings' errors depend
on the seed, its index and the number of clusters, never on how many other faces there are. (z does, through the
group's mean and standard deviation.)
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from fluence.data.face_groups import CLUSTERS, SEXES
from fluence.data.face_parameters import Face, sample_face
from fluence.data.face_renderer import LUMINANCE, draw
from fluence.study import SyntheticDataset

VERSION = 1  # raised when the same settings give other faces or ratings
PROPERTY_SIZE_PX = 64  # the property is that of the face drawn at this size, whatever size the study asks for
ETHNICITY_OFFSETS = {"a": 0.10, "b": -0.05, "c": 0.00, "d": 0.15, "e": -0.10, "f": -0.10}  # in sd of true beauty
SEX_OFFSETS = {"female": 0.15, "male": -0.15}
SCALE_MIDDLE, SCALE_SD = 4.0, 0.8

_FACE, _RATINGS = 0, 1  # streams of random numbers of one image


def synthetic_table(settings: SyntheticDataset) -> pd.DataFrame:
    """The manifest of the synthetic faces, with ratings whose cause is known.

    Args:
        settings: the data set's section of the study.

    Returns:
        One row per face, in the order of their index: `image_id` ("synthetic-000012"), `ethnicity` ("a" …), `sex`,
        `age` (years), `person_id`; `beauty` (mean of the raters), `beauty_sd` (standard deviation between them,
        divisor m − 1; NaN for one rater), `n_ratings`, `true_beauty` (what raters without error would say), all on
        the scale of 1 to 7; `edge_sparsity`, the planted property; and each rater's rating, `rater_00` ….
    """
    indices = range(settings.num_images)
    table = pd.DataFrame([_description(settings, index) for index in indices])
    truth, ratings = rate(settings, table)
    raters = pd.DataFrame(ratings, columns=[f"rater_{j:02d}" for j in range(settings.num_raters)])
    scores = {
        "beauty": ratings.mean(axis=1),
        "beauty_sd": ratings.std(axis=1, ddof=1) if settings.num_raters > 1 else np.nan,
        "n_ratings": settings.num_raters,
        "true_beauty": truth,
    }
    return pd.concat([table.assign(**scores), raters], axis=1)


def render_face(settings: SyntheticDataset, index: int, size_px: int) -> np.ndarray:
    """Draw one face of the data set.

    Args:
        settings: the data set's section of the study; only `seed` and `num_ethnicities` matter.
        index: which face, counted from 0.
        size_px: side of the image in pixels; every size shows the same face.

    Returns:
        uint8 [size_px, size_px, 3], RGB.
    """
    return draw(face_of(settings, index), size_px)


def face_of(settings: SyntheticDataset, index: int) -> Face:
    """The parameters of one face; groups take turns, so that any stretch of indices holds them evenly."""
    return sample_face(_random(settings.seed, index, _FACE), *group_of(settings, index))


def group_of(settings: SyntheticDataset, index: int) -> tuple[str, str]:
    """The ethnicity-like cluster and the sex-like group of a face."""
    turn, sex = divmod(index, len(SEXES))
    return list(CLUSTERS)[turn % settings.num_ethnicities], list(SEXES)[sex]


def rate(settings: SyntheticDataset, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Plant the effect and let the raters judge (the formula stands at the top of this module).

    Args:
        settings: the data set's section of the study.
        table: one row per face, in the order of their index, with `ethnicity`, `sex` and `edge_sparsity`.

    Returns:
        True beauty [n] and ratings [n, num_raters], both on the scale of 1 to 7.
    """
    r2 = settings.effect.r2 if settings.effect else 0.0
    errors = np.array(
        [_random(settings.seed, i, _RATINGS).standard_normal(1 + settings.num_raters) for i in range(len(table))]
    )
    offset = table["ethnicity"].map(ETHNICITY_OFFSETS) + table["sex"].map(SEX_OFFSETS)
    z = _within_groups(table)
    truth = offset.to_numpy(float) + np.sqrt(r2) * z + np.sqrt(1 - r2) * errors[:, 0]
    ratings = truth[:, None] + settings.rater_noise_sd * errors[:, 1:]
    return SCALE_MIDDLE + SCALE_SD * truth, SCALE_MIDDLE + SCALE_SD * ratings


def edge_sparsity(pixels: np.ndarray) -> float:
    """Gini index of the magnitudes of an image's luminance gradient: high if its edges are few and strong.

    Args:
        pixels: uint8 [height, width, 3], RGB.

    Returns:
        0 (the same slope everywhere) … 1 − 1/N for N pixels; 0 for an image of one colour, which has no edges.

    Source: Hurley & Rickard 2009, "Comparing measures of sparsity": Σₖ (2k − N − 1) c₍ₖ₎ / (N Σ c), c sorted
    upwards. Central differences; luminance as in ITU-R BT.709.
    """
    down, across = np.gradient(pixels @ LUMINANCE.astype(float))
    magnitudes = np.sort(np.hypot(down, across), axis=None)
    count, total = magnitudes.size, magnitudes.sum()
    ranks = 2 * np.arange(1, count + 1) - count - 1
    return float(ranks @ magnitudes / (count * total)) if total > 0 else 0.0


def _description(settings: SyntheticDataset, index: int) -> dict[str, object]:
    face, (ethnicity, sex) = face_of(settings, index), group_of(settings, index)
    return {
        "image_id": f"synthetic-{index:06d}",
        "ethnicity": ethnicity,
        "sex": sex,
        "age": face.age,
        "person_id": f"person-{index:06d}",
        "edge_sparsity": edge_sparsity(draw(face, PROPERTY_SIZE_PX)),
    }


def _within_groups(table: pd.DataFrame) -> np.ndarray:
    """The property, standardised within its group [n]; 0 where a group has a single face."""
    groups = table.groupby(["ethnicity", "sex"])["edge_sparsity"]
    spread = groups.transform("std", ddof=0)
    centred = table["edge_sparsity"] - groups.transform("mean")
    return (centred / spread.where(spread > 0, 1.0)).to_numpy(float)


def _random(seed: int, index: int, stream: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, stream)))
