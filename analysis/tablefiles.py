"""Tables of the statistics: each is two files with the same rows, CSV for people and Parquet, which keeps the types.

Everything here reads the Parquet files; CSV does not tell an empty text from a missing number.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from fluence.store.files import read_table, write_table

KINDS = (".csv", ".parquet")
"""Endings of the two files."""


def write_statistics(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Writes a table as `<name>.csv` and `<name>.parquet`: text is never missing but empty, and no number is infinite.

    Args:
        folder: where to.
        name: of the table.
        table: its rows.
    """
    typed = table.infer_objects().replace([np.inf, -np.inf], np.nan)
    is_text = [not pd.api.types.is_numeric_dtype(typed[column]) for column in typed]  # true or false counts as a number
    texts = {column: _as_text(typed[column]) for column in typed.columns[is_text]}
    for kind in KINDS:
        write_table(folder / f"{name}{kind}", typed.assign(**texts))


def read_statistics(folder: Path, name: str) -> pd.DataFrame:
    """Reads a table that `write_statistics` wrote.

    Raises:
        ArtifactError: the Parquet file is missing or damaged.
    """
    return read_table(folder / f"{name}.parquet")


def _as_text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str)
