from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.tablefiles import read_statistics, write_statistics
from fluence.errors import ArtifactError


def test_both_files_hold_the_same_and_parquet_keeps_the_types(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "reason": ["", None, "a, “b”\nc"],
            "note": ["", "", ""],
            "r": [0.1 + 0.2, np.inf, np.nan],
            "n": [3, 4, 5],
            "significant": [True, False, True],
            "epsilon": pd.Series([None, None, None], dtype=object),
        }
    )
    write_statistics(tmp_path, "things", table)
    read = read_statistics(tmp_path, "things")
    assert read["reason"].tolist() == ["", "", "a, “b”\nc"]
    assert read["note"].tolist() == [""] * 3
    assert read["r"].iloc[0] == 0.1 + 0.2
    assert read["r"].isna().tolist() == [False, True, True]
    assert (read["significant"].dtype, read["n"].dtype) == (bool, np.int64)
    from_csv = pd.read_csv(tmp_path / "things.csv", keep_default_na=False, na_values={"r": [""]})
    pd.testing.assert_frame_equal(
        from_csv[["reason", "r", "n", "significant"]], read[["reason", "r", "n", "significant"]]
    )


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    write_statistics(tmp_path, "none", pd.DataFrame(columns=["model", "r"]))
    assert list(read_statistics(tmp_path, "none").columns) == ["model", "r"]
    assert (tmp_path / "none.csv").read_text() == "model,r\n"


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"gone\.parquet: no such file"):
        read_statistics(tmp_path, "gone")
