"""Does a metric go with the ratings in the same way in every group? The interaction of group and metric, by OLS."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.linalg import orth
from statsmodels.regression.linear_model import OLS

from analysis.families import bh_by, families_of
from analysis.statistics import why_untestable
from analysis.tables import covariate_design
from fluence.study import Analysis

MIN_OF_GROUP = 10
"""A group with fewer images that have a value of the metric is left out of the comparison."""

HC3, CLUSTERED = "Wald F, OLS with HC3", "Wald F, OLS with cluster-robust errors"

_ALONE = 1 - 1e-8  # leverage of an image that has a coefficient for itself
_EXPLAINED = 1e-12  # share of the variance that counts as nothing


def interactions(features: pd.DataFrame, rated: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Tests for every metric of every layer whether its slope is the same in all groups.

    Ratings are regressed on group × standardised metric and the other covariates. Errors are HC3, or cluster-robust
    where a person or a picture is there several times.

    Args:
        features: image × (layer, metric).
        rated: the same images, rows of `tables.rated_images`.
        analysis: settings of the study.

    Returns:
        A row per column: layer, metric, estimator, n, num_groups, groups_left_out, f, df_num, df_denom, p, p_bh,
        significant, family, family_size, reason; no row if the images are of one group.

    Source: MacKinnon & White 1985 (HC3); Liang & Zeger 1986 (clusters).
    """
    if rated["group"].nunique() < 2:
        return pd.DataFrame()
    other = [name for name in analysis.covariates if name != "group"]
    design = covariate_design(rated, other).matrix.to_numpy(dtype=np.float64)
    groups, score = rated["group"].to_numpy(), rated["score"].to_numpy(dtype=np.float64)
    clusters = rated["cluster"].to_numpy()
    rows = [_interaction(column, score, groups, design, clusters) for column in features.to_numpy(dtype=np.float64).T]
    table = pd.DataFrame(rows).assign(
        layer=[layer for layer, _ in features.columns],
        metric=[metric for _, metric in features.columns],
        estimator=HC3 if len(np.unique(clusters)) == len(clusters) else CLUSTERED,
        family=families_of(list(features.columns), analysis.family),
    )
    return decided(bh_by(table, ["family"], ["p"]), analysis)


def decided(table: pd.DataFrame, analysis: Analysis) -> pd.DataFrame:
    """Adds what is called significant; the permutation correction does not apply to these tests."""
    return table.assign(significant=table["p_bh"] <= 1 - analysis.confidence)


def _interaction(
    column: np.ndarray, score: np.ndarray, groups: np.ndarray, covariates: np.ndarray, clusters: np.ndarray
) -> dict[str, object]:
    """The test of one metric, or the reason why there is none."""
    names, sizes = np.unique(groups, return_counts=True)
    kept = [name for name in names if _varies(column[groups == name])]
    rows = np.isfinite(column) & np.isin(groups, kept)
    numbers = dict.fromkeys(("f", "df_num", "df_denom", "p"), np.nan)
    left = "; ".join(f"{name} ({size})" for name, size in zip(names, sizes, strict=True) if name not in kept)
    found = {"n": int(rows.sum()), "num_groups": len(kept), "groups_left_out": left} | numbers
    reason = why_untestable(column[np.isfinite(column)], score[np.isfinite(column)])
    if not reason and len(kept) < 2:
        reason = f"fewer than two groups with {MIN_OF_GROUP} images among which the metric varies"
    reason = reason or why_untestable(column[rows], score[rows])
    if reason:
        return found | {"reason": reason}
    metric = (column[rows] - column[rows].mean()) / column[rows].std()
    dummies = (groups[rows, None] == np.array(kept[1:])).astype(np.float64)
    design = np.column_stack([np.ones(len(metric)), covariates[rows], dummies, metric, metric[:, None] * dummies])
    return found | _wald(score[rows], design, len(kept) - 1, clusters[rows])


def _varies(column: np.ndarray) -> bool:
    values = column[np.isfinite(column)]
    return len(values) >= MIN_OF_GROUP and bool(np.ptp(values) > 1e-12 * np.abs(values).max())


def _wald(score: np.ndarray, design: np.ndarray, num_tested: int, clusters: np.ndarray) -> dict[str, object]:
    """F test that the last coefficients are all zero. Images that have a coefficient for themselves say nothing.

    The other columns are replaced by a basis of what they span: covariates that repeat each other change no test.
    """
    alone = (orth(design) ** 2).sum(axis=1) > _ALONE
    score, design, clusters = score[~alone], design[~alone], clusters[~alone]
    tested = design[:, -num_tested:]
    design = np.column_stack([orth(design[:, :-num_tested]), tested])
    num_independent, num_columns = len(np.unique(clusters)), design.shape[1]
    if num_independent <= num_columns:
        return {"n": len(score), "reason": f"{num_independent} independent images for {num_columns} coefficients"}
    if np.linalg.matrix_rank(design) < num_columns:
        return {"n": len(score), "reason": "the covariates explain the metric within a group"}
    fitted = OLS(score, design).fit()
    if fitted.ssr <= _EXPLAINED * ((score - score.mean()) ** 2).sum():
        return {"n": len(score), "reason": "groups, metric and covariates explain the ratings entirely"}
    if num_independent == len(clusters):
        robust = fitted.get_robustcov_results("HC3", use_t=True)
    else:
        robust = fitted.get_robustcov_results("cluster", use_t=True, groups=clusters)
    found = robust.wald_test(np.eye(num_columns)[-num_tested:], use_f=True, scalar=True)
    numbers = {"f": found.statistic, "df_num": found.df_num, "df_denom": found.df_denom, "p": found.pvalue}
    return {"n": len(score), "reason": ""} | {name: float(value) for name, value in numbers.items()}
