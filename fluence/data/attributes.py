"""The columns of the training images that latent units are to follow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from fluence.data.manifest import did_you_mean
from fluence.errors import StudyError
from fluence.study import ArVaeModel, Model


def attribute_columns(model: Model) -> tuple[str, ...]:
    """Columns whose values the model's latent units are to follow, in the order of its settings."""
    return tuple(attribute.column for attribute in model.attributes) if isinstance(model, ArVaeModel) else ()


def attribute_values(model: Model, table: pd.DataFrame, training: np.ndarray, name: str) -> np.ndarray | None:
    """Values of these columns for each image, float32 [num_images, num_columns], NaN where unknown; None without any.

    Args:
        model: settings of the model.
        table: the packed images, with all their columns.
        training: positions of the images to learn from.
        name: name of the model, for messages.

    Raises:
        StudyError: see `check_columns`.
    """
    columns = attribute_columns(model)
    check_columns(model, table.iloc[training], name)
    return table[list(columns)].to_numpy(np.float32) if columns else None


def check_columns(model: Model, table: pd.DataFrame, name: str, measured: Iterable[str] = ()) -> None:
    """Refuse columns to follow that do not exist, are no numbers, or put no two images in an order.

    Args:
        model: settings of the model.
        table: the training images, with all their columns.
        name: name of the model, for messages.
        measured: columns that packing will add.

    Raises:
        StudyError: naming the columns of numbers that there are.
    """
    numeric = [str(column) for column in table if pd.api.types.is_numeric_dtype(table[column])]
    there = list(dict.fromkeys([*numeric, *measured]))
    for column in attribute_columns(model):
        if column not in there:
            trouble = "does not hold numbers" if column in table else "does not exist"
        elif column in numeric and table[column].nunique() < 2:
            trouble = "has not two different values, hence no order to follow"
        else:
            continue
        hint = did_you_mean(column, [other for other in there if other != column])
        raise StudyError(
            f"models.{name}.attributes: the column {column!r} of the training images {trouble}; "
            f"{hint and hint + ' '}Columns of numbers: {', '.join(there)}"
        )
