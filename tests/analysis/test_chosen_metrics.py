"""A study that chooses other metrics has them, and no others, in its statistics and in its report."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.report import write_report
from fluence.store.files import read_table
from tests.analysis.invented_study import MadeStudy, build

CHOSEN = ["hoyer", "gini_map", "entropy"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeStudy:
    return build(
        tmp_path_factory.mktemp("chosen"),
        num_images=60,
        ends={},
        models={"small": {"kind": "vae"}},
        analysis={
            "permutations": 99,
            "bootstrap": 99,
            "ridge": {"folds": 3, "repeats": 1},
            "metrics": CHOSEN,
            "sparsity": {"per": ["layer", "map"]},
        },
        grid={"groups": ["all"], "seeds": [0]},
    )


def test_the_statistics_hold_the_metrics_that_were_chosen(made: MadeStudy) -> None:
    correlations = read_table(made.layout.statistics / "correlations.csv")
    of_layers = correlations[correlations["layer"] != "reconstruction"]
    assert set(of_layers["metric"]) == set(CHOSEN)
    assert of_layers.loc[of_layers["estimator"] == "pearson", "estimate"].notna().all()
    ridge = read_table(made.layout.statistics / "ridge.csv")
    assert ridge["predictors"].tolist() == [*CHOSEN, "reconstruction", "all"]
    assert ridge["r2_metrics"].notna().all()


def test_the_report_calls_them_by_name_and_says_what_is_expected(made: MadeStudy) -> None:
    write_report(made.study, made.layout, made.runs)
    html = Path(made.layout.report_page).read_text(encoding="utf-8")
    for words in (
        "Fluency theory expects positive values for Hoyer and Gini of maps, negative ones for all others.",
        "we computed Hoyer’s measure",
        "(3 in “small” layers)",
        "Shannon CE",
    ):
        assert words in html
    assert "Hurley" in html  # gini_map is a Gini index
    assert "Treves" not in html
