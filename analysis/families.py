"""Which tests are corrected together, as the study declares it (`analysis.family`), and the corrections.

A family never holds more than one estimator, nor more than one set of images. Families inside a cell (one scorer, one
seed) are corrected when the cell is computed; the family `study` when all cells are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from fluence.study import Correction, Family

WORDS: dict[Family, str] = {
    "cell": "all layers and metrics of one estimator, for one model, seed and set of images",
    "metric": "the layers of one metric by one estimator, for one model, seed and set of images",
    "layer": "the metrics of one layer by one estimator, for one model, seed and set of images",
    "study": "all models, seeds, layers and metrics of one estimator on one set of images",
}
"""What is corrected together, in words for the report."""

_TIES = 1e-12  # two statistics closer than this are the same permutation, computed in another order


def families_of(columns: Sequence[tuple[str, str]], family: Family) -> np.ndarray:
    """The family of each column within its cell, text [p].

    Args:
        columns: layer and metric of each.
        family: what the study declares.
    """
    named = {"metric": [metric for _, metric in columns], "layer": [layer for layer, _ in columns]}
    return np.array(named.get(family, [family] * len(columns)), dtype=object)


def permutation_p(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """Permutation p: how often chance does as well as what was observed, which counts as one of the orders.

    Args:
        observed: deviation of each column, float64 [p].
        chance: deviations in every order, the first as observed: of each column, float64 [1 + B, p], for its own p;
            or the largest of a family, float64 [1 + B, 1], for the p adjusted over the family.

    Returns:
        (1 + #) / (1 + B), float64 [p].

    Source: Phipson & Smyth 2010 (the estimate of p); Westfall & Young 1993 (the largest deviation, single step).
    """
    return (chance >= observed - _TIES).mean(axis=0)


def benjamini_hochberg(p: pd.Series) -> pd.Series:
    """p adjusted over the tests that have one; NaN stays NaN.

    Source: Benjamini & Hochberg 1995.
    """
    known = p.notna()
    adjusted = pd.Series(np.nan, p.index, dtype=np.float64)
    if known.any():
        adjusted[known] = stats.false_discovery_control(p[known].astype(np.float64))
    return adjusted


def within_cell(table: pd.DataFrame, away: np.ndarray) -> pd.DataFrame:
    """Corrects the tests of a cell, each family by itself.

    Args:
        table: a row per test, with `family`, and `p_permutation` where it could be made.
        away: deviations of the tests that could be made, float64 [1 + B, tests], the first row as observed.

    Returns:
        The table with p_bh, p_max_r and family_size, the number of tests of the family that could be made.
    """
    names, p = table["family"].to_numpy(), table["p_permutation"]
    tested = p.notna().to_numpy()
    p_bh, p_max, sizes = np.full(len(p), np.nan), np.full(len(p), np.nan), np.zeros(len(p), dtype=np.int64)
    for name in dict.fromkeys(names):
        rows, own = tested & (names == name), away[:, names[tested] == name]
        sizes[names == name] = rows.sum()
        if rows.any():
            p_bh[rows] = benjamini_hochberg(p[rows])
            p_max[rows] = permutation_p(own[0], own.max(axis=1, keepdims=True))
    return table.assign(p_bh=p_bh, p_max_r=p_max, family_size=sizes)


def over_cells(table: pd.DataFrame, largest: Iterable[tuple[str, Mapping[str, np.ndarray]]]) -> pd.DataFrame:
    """Corrects the tests of one estimator over all cells that are judged on the same images.

    Orders of the images are shared by all cells of a sample, so that the largest deviation in each is too.

    Args:
        table: the correlations of all cells, in rows of `correlate` with `subset`.
        largest: of each cell, the name of its sample, and by estimator its largest deviation in every order [1 + B].

    Returns:
        The table with p_bh, p_max_r and family_size of the larger families.
    """
    chance: dict[tuple[str, str], np.ndarray] = {}
    for sample, of_cell in largest:
        for estimator, own in of_cell.items():
            chance[sample, estimator] = np.maximum(own, chance.get((sample, estimator), own))
    table = table.copy()
    for (sample, estimator), rows in table.groupby(["subset", "estimator"], sort=False):
        tested = rows[rows["p_permutation"].notna()]
        table.loc[rows.index, "family_size"] = len(tested)
        if len(tested):
            observed = deviation((tested["estimate"] - tested["expected"]).to_numpy(), str(estimator))
            table.loc[tested.index, "p_bh"] = benjamini_hochberg(tested["p_permutation"])
            table.loc[tested.index, "p_max_r"] = permutation_p(observed, chance[str(sample), str(estimator)][:, None])
    return table


def bh_by(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Adds `<column>_bh`, adjusted by Benjamini-Hochberg within each combination of `by`, and family_size."""
    table = table.assign(**{f"{column}_bh": np.nan for column in columns}, family_size=0)
    for _, rows in table.groupby(list(by), sort=False):
        for column in columns:
            table.loc[rows.index, f"{column}_bh"] = benjamini_hochberg(rows[column])
        table.loc[rows.index, "family_size"] = int(rows[columns[0]].notna().sum())
    return table


def deviation(difference: np.ndarray, estimator: str) -> np.ndarray:
    """How far a statistic is from its mean over the orders; for ξ, which only grows with dependence, with its sign."""
    return difference if estimator == "xi" else np.abs(difference)


def decide(table: pd.DataFrame, correction: Correction, confidence: float) -> pd.DataFrame:
    """Adds the adjusted p that the study decides by, and what it decides."""
    adjusted = table["p_bh" if correction == "bh" else "p_max_r"]
    return table.assign(p_adjusted=adjusted, significant=adjusted <= 1 - confidence)
