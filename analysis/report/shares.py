"""The table of population shares: how large the effects are, whatever the number of images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.report.evidence import Evidence
from analysis.report.page import NOTHING, Cell, Item, Table, Text, cell, interval
from analysis.report.summary import PREDICTOR_NAMES, seeds_done

_DECIMALS = 3


def population_shares(evidence: Evidence, rows: pd.DataFrame) -> Iterator[Item]:
    """What the metrics explain beyond the confounds in the population, beside Δ R²: two questions, two numbers.

    Args:
        evidence: of the study.
        rows: of `Summary.general_ridge`, those with a Δ R².
    """
    columns = ("model", "metrics used", "images", "seeds", "Δ R²", "population share", "interval", "remark")
    lines = [tuple(_line(evidence, row)) for _, row in rows.iterrows()]
    caption = "The share of the variance that the metrics explain beyond the confounds (means over the seeds)"
    yield Table(caption, columns, tuple(lines), file="../statistics/ridge.csv")
    yield Text(
        "Δ R² is what a regression predicts that learned from these images, and the result of this study. The "
        "population share is what endlessly many images would let it explain: the size of the effect, to be set "
        "beside studies with other numbers of images. Its interval ends at 0; the estimate may lie below, as it must "
        "about half of the time where there is nothing. One image of each person or set of duplicates enters."
    )


def _line(evidence: Evidence, row: pd.Series) -> Iterator[Cell]:
    low, high, images = row["population_low"], row["population_high"], row["population_n"]
    yield cell(row["model"])
    yield cell(PREDICTOR_NAMES.get(row["predictors"], row["predictors"]))
    yield cell(int(images)) if np.isfinite(images) else cell(NOTHING)
    yield Cell(seeds_done(evidence, row["num_seeds"], row["model"]), float(row["num_seeds"]))
    yield cell(float(row["delta"]), _DECIMALS)
    yield cell(float(row["population"]), _DECIMALS)
    yield Cell(interval(low, high), float(low) if np.isfinite(low) else 2.0)
    yield cell(row["population_reason"])
