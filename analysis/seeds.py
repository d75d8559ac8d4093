"""Several trainings that differ only in their seed, as one row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pandas as pd


def over_seeds(
    table: pd.DataFrame,
    by: Sequence[str],
    values: Sequence[str],
    planned: Callable[[Mapping[str, object]], Sequence[int]],
    *,
    means: Sequence[str] = (),
    same: Sequence[str] = (),
) -> pd.DataFrame:
    """Mean, standard deviation, smallest and largest value over trainings that differ only in their seed.

    Args:
        table: a row per seed.
        by: columns that tell the trainings apart but for their seed.
        values: columns to sum up, as `<value>_mean`, `_sd`, `_min`, `_max`; the sd of a single seed is NaN.
        planned: from the values of `by` to the seeds that there should be.
        means: columns of which only the mean is kept, such as the ends of intervals.
        same: columns that do not depend on the seed, kept as they are.

    Returns:
        A row per combination of `by`, in their first order, with num_seeds (those with an estimate), missing_seeds
        (those planned without one, as text) and n (smallest).
    """
    grouped = table.groupby(list(by), sort=False, dropna=False)
    result = grouped.agg(num_seeds=(values[0], "count"), n=("n", "min"))
    done = table.assign(seed=table["seed"].where(table[values[0]].notna())).groupby(list(by), sort=False, dropna=False)
    missing = [
        ", ".join(str(seed) for seed in planned(dict(zip(by, _as_tuple(where), strict=True))) if seed not in set(seeds))
        for where, seeds in done["seed"]
    ]
    result.insert(1, "missing_seeds", missing)
    for value in values:
        for name, statistic in (("mean", "mean"), ("sd", "std"), ("min", "min"), ("max", "max")):
            result[f"{value}_{name}"] = grouped[value].agg(statistic)
    for value in means:
        result[f"{value}_mean"] = grouped[value].mean()
    for value in same:
        result[value] = grouped[value].first()
    return result.reset_index()


def _as_tuple(key: object) -> tuple[object, ...]:
    return key if isinstance(key, tuple) else (key,)
