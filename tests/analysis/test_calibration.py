"""A small `benchmarks/calibration.py`: wide limits that an honest interval meets and a wrong one does not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fluence.study import Analysis

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration.py"
_SIMULATIONS, _IMAGES = 20, 150


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    spec = importlib.util.spec_from_file_location("calibration", _SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = script
    spec.loader.exec_module(script)
    analysis = Analysis.model_validate({"permutations": 99, "bootstrap": 99, "ridge": {"folds": 5, "repeats": 1}})
    pool = script.invented_pool(3000, np.random.default_rng(0))
    summaries, p = [], pd.DataFrame()
    for planted in (0.0, 0.2):
        truth = script.plant(pool, planted, analysis)
        found = [script.simulate(pool, truth, _IMAGES, seed, analysis) for seed in range(_SIMULATIONS)]
        summaries.append(script.summary(found, truth))
        p = script.calibration(found) if planted == 0 else p
    return {"summary": pd.concat(summaries, axis=1).T, "p": p}


def test_intervals_cover_what_is_planted(tables: dict[str, pd.DataFrame]) -> None:
    summary = tables["summary"]
    assert (summary["covered by population"] >= 0.85).all()  # the interval of Δ R² holds a planted 0 in four of ten
    assert summary["population"].tolist() == pytest.approx([0, 0.2], abs=0.035)
    assert (summary["covered by Δ R²"] >= 0.8).all()
    assert summary[["pearson", "spearman", "partial"]].to_numpy().ravel() == pytest.approx(0.95, abs=0.045)


def test_nothing_is_found_where_nothing_is_and_something_where_something_is(tables: dict[str, pd.DataFrame]) -> None:
    nothing, something = (tables["summary"].loc[share] for share in (0.0, 0.2))
    assert nothing[["power", "any set", "any metric"]].max() <= 0.2
    assert something[["power", "any set", "any metric"]].min() >= 0.9


def test_p_is_as_often_below_a_level_as_it_says(tables: dict[str, pd.DataFrame]) -> None:
    partial = tables["p"].filter(like="partial", axis=0)  # 12 metrics each, of which a part is common
    for level in (0.1, 0.25, 0.5, 0.75):
        assert partial[level].to_numpy() == pytest.approx(level, abs=0.12)
