"""Loading: ratings, groups and covariates of the rated images, and metrics joined to them by image_id alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from analysis.gates import REPORTED
from analysis.measure import LOSS, RECONSTRUCTION, quantile_name
from analysis.typicality import Asked
from analysis.typicality_words import PREFIX
from fluence.errors import ArtifactError, StudyError
from fluence.layout import Layout
from fluence.store.files import read_table
from fluence.store.packed import Packed
from fluence.study import Analysis, Study, group_slug

UNKNOWN_GROUP = "unknown"
DEFAULT_METRICS = Analysis().metrics
METRIC_COLUMNS = ("image_id", "layer", "metric", "value")


@dataclass(frozen=True)
class Design:
    """The confound baseline as numbers.

    Attributes:
        matrix: float64 [images × columns], indexed by image_id; dummies leave out the first level.
        used: covariates that are in the matrix.
        missing: covariates that the data set lacks, or that are empty for every image.
        constant: covariates that do not vary over these images.
        filled: covariates with gaps; gaps were filled with the median and marked in a column of their own.
    """

    matrix: pd.DataFrame
    used: tuple[str, ...]
    missing: tuple[str, ...]
    constant: tuple[str, ...]
    filled: tuple[str, ...]


def rated_images(table: pd.DataFrame, score: str, group_by: Sequence[str]) -> pd.DataFrame:
    """The rated images of a packed table, indexed by image_id, with columns `score`, `group` and `cluster` added.

    Images without a rating are left out. A cluster is a set of images that belong on one side of every split: the
    same `person_id`, or duplicates of each other.

    Args:
        table: the manifest with its covariates, one row per image.
        score: column of the ratings.
        group_by: columns whose combinations are the groups.

    Raises:
        StudyError: a column is missing, the ratings are not numbers, there are none, or they are all equal.
    """
    for column, key in [(score, "data.score"), *((name, "data.group_by") for name in group_by)]:
        if column not in table:
            raise StudyError(
                f"{key}: the rated images have no column {column!r}; there are: {', '.join(map(str, table.columns))}"
            )
    ratings = _numbers(table, score)
    rated = grouped_images(table.assign(score=ratings), group_by)
    rated = rated[rated["score"].notna()]
    if rated.empty:
        raise StudyError(f"data.score: no image has a rating in column {score!r}; nothing can be explained")
    if rated["score"].nunique() == 1:
        raise StudyError(f"data.score: all {len(rated)} ratings in column {score!r} are equal: nothing to explain")
    return rated


def grouped_images(table: pd.DataFrame, group_by: Sequence[str]) -> pd.DataFrame:
    """All images of a packed table, indexed by image_id, with columns `group` and `cluster` (see `rated_images`).

    Args:
        table: the manifest with its covariates, one row per image.
        group_by: columns whose combinations are the groups; all there.
    """
    groups = [_group(row) for row in table[list(group_by)].itertuples(index=False)]
    return table.assign(group=groups, cluster=clusters(table)).set_index("image_id", drop=False)


def asked_typicality(study: Study, layout: Layout) -> Asked | None:
    """What a study asks about typicality, with the images that it knows; None if nothing.

    Raises:
        ArtifactError: a packed data set is missing or damaged.
    """
    if study.analysis.typicality is None:
        return None
    rated, training = (Packed(layout.packed(name)).table for name in (study.data.rated, study.data.training))
    images = grouped_images(rated, study.data.group_by)
    return Asked(study.analysis.typicality, study.analysis.seed, images, training.set_index("image_id")["sha256"])


def clusters(table: pd.DataFrame) -> np.ndarray:
    """Number of each image's cluster, int [images]: images linked by `person_id` or `duplicate_of`, also in chains."""
    own = "image:" + table["image_id"].astype(str)
    links = [(own, "person:" + _text(table, "person_id")), (own, "image:" + _text(table, "duplicate_of"))]
    starts = pd.concat([start[end.notna()] for start, end in links])
    ends = pd.concat([end[end.notna()] for _, end in links])
    codes, nodes = pd.factorize(pd.concat([own, starts, ends]))
    first, second = np.split(codes[len(own) :], 2)
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(nodes), len(nodes)))
    component = connected_components(graph, directed=False)[1]
    return pd.factorize(component[codes[: len(own)]])[0]


def load_metrics(path: Path, image_ids: Sequence[str]) -> pd.DataFrame:
    """Metrics of one run for exactly these images: image_id, layer, metric, value. Images not asked for are left out.

    Raises:
        ArtifactError: the file is missing or damaged, an image is missing from it, or a value is there twice.
    """
    metrics = read_table(path)
    if not set(METRIC_COLUMNS) <= set(metrics.columns):
        raise ArtifactError(f"{path}: no table of metrics (columns {', '.join(metrics.columns)}); measure it again")
    missing = pd.Index(image_ids).difference(metrics["image_id"].unique())
    if len(missing):
        raise ArtifactError(
            f"{path}: {len(missing)} of {len(image_ids)} rated images are missing: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}; extract and measure this run again"
        )
    twice = metrics[metrics.duplicated(["image_id", "layer", "metric"])]
    if len(twice):
        raise ArtifactError(f"{path}: {len(twice)} values occur twice, first for image {twice['image_id'].iloc[0]}")
    return metrics[metrics["image_id"].isin(image_ids)]


def wide(metrics: pd.DataFrame) -> pd.DataFrame:
    """A long table of metrics as image × (layer, metric), columns in the order of the network."""
    order = pd.MultiIndex.from_frame(metrics[["layer", "metric"]].drop_duplicates())
    return metrics.pivot(index="image_id", columns=["layer", "metric"], values="value").reindex(columns=order)


def reported_metrics(report_quantile: float, chosen: Sequence[str] = DEFAULT_METRICS) -> dict[str, str]:
    """The metrics of layers that enter the tests, with the family that each belongs to (`Analysis.metrics`)."""
    l_epsilon = f"l_eps_fraction_{quantile_name(report_quantile)}"
    return {l_epsilon if name == "l_eps" else name: name for name in chosen}


def feature_matrix(
    metrics: pd.DataFrame, report_quantile: float, chosen: Sequence[str] = DEFAULT_METRICS
) -> pd.DataFrame:
    """The metrics that enter the tests, image × (layer, metric).

    Of layers those that the study chooses, L_ε by its fraction at the reported quantile; of gates their mean and
    entropy; all typicality that was computed; errors, and sharpness with the norm of the gradient.

    The count of L_ε is left out: it is the fraction times a constant, and would only enlarge the family of tests. So
    would the effective number of gates, which is a function of the entropy.

    Args:
        metrics: long table of `load_metrics`.
        report_quantile: quantile of the ε rule that is reported.
        chosen: names of metrics of layers (`Analysis.metrics`).
    """
    reported = metrics["metric"].isin([*reported_metrics(report_quantile, chosen), *REPORTED])
    reported |= metrics["metric"].str.startswith(PREFIX)
    return wide(metrics[reported | metrics["layer"].isin([RECONSTRUCTION, LOSS])])


def sweep_matrix(metrics: pd.DataFrame) -> pd.DataFrame:
    """The fraction of L_ε at every quantile of the ε rule, image × (layer, metric)."""
    return wide(metrics[metrics["metric"].str.startswith("l_eps_fraction_")])


def covariate_design(rated: pd.DataFrame, covariates: Sequence[str]) -> Design:
    """The confound baseline of some images: dummies for `group` and for text, standardised numbers for the rest.

    Args:
        rated: rows of `rated_images`.
        covariates: `group` and names of columns.
    """
    columns: dict[str, np.ndarray] = {}
    outcome: dict[str, list[str]] = {"used": [], "missing": [], "constant": [], "filled": []}
    for name in covariates:
        values = _text(rated, name) if name in rated and not _is_numeric(rated[name]) else rated.get(name)
        if values is None or values.isna().all():
            outcome["missing"].append(name)
        elif values.nunique(dropna=False) == 1:
            outcome["constant"].append(name)
        else:
            columns |= _dummies(name, values) if not _is_numeric(values) else _number(name, values)
            outcome["used"].append(name)
            outcome["filled"] += [name] if values.isna().any() else []
    matrix = pd.DataFrame(columns, index=rated.index, dtype=np.float64)
    return Design(matrix, **{key: tuple(names) for key, names in outcome.items()})


def _numbers(table: pd.DataFrame, score: str) -> pd.Series:
    given = table[score].replace("", None) if not _is_numeric(table[score]) else table[score]
    numbers = pd.to_numeric(given, errors="coerce").astype(np.float64)
    wrong = np.flatnonzero((given.notna() & numbers.isna()) | np.isinf(numbers))
    if len(wrong):
        first = table.iloc[wrong[0]]
        raise StudyError(
            f"data.score: {len(wrong)} ratings in column {score!r} are not numbers, first {first[score]!r} of image "
            f"{first['image_id']}"
        )
    return numbers


def _group(values: tuple[object, ...]) -> str:
    return UNKNOWN_GROUP if any(pd.isna(v) or v == "" for v in values) else group_slug(tuple(map(str, values)))


def _text(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as text, with None where it is empty or absent."""
    values = table[column] if column in table else pd.Series("", index=table.index)
    return pd.Series([None if pd.isna(v) or v == "" else str(v) for v in values], index=table.index, dtype="object")


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values)


def _dummies(name: str, values: pd.Series) -> dict[str, np.ndarray]:
    levels = pd.get_dummies(values.fillna("missing"), prefix=name, drop_first=True, dtype=np.float64)
    return {str(column): levels[column].to_numpy() for column in levels}


def _number(name: str, values: pd.Series) -> dict[str, np.ndarray]:
    gaps = values.isna().to_numpy()
    filled = values.fillna(values.median()).to_numpy(dtype=np.float64)
    spread = filled.std()
    columns = {name: (filled - filled.mean()) / spread} if spread > 0 else {}
    return columns | ({f"{name}_missing": gaps.astype(np.float64)} if gaps.any() else {})
