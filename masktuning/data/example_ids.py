"""Columns that are added to a training set, such as the row numbers by which masks are drawn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.utils.data

from masktuning.config.errors import UsageError


class _WithColumn(torch.utils.data.Dataset):
    """A map-style dataset of mappings with one more column; a row's own value takes precedence."""

    def __init__(self, rows: Any, name: str, values: Sequence[Any]) -> None:
        self.rows, self.name, self.values = rows, name, values

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {self.name: self.values[index], **self.rows[index]}


def with_column(dataset: Any, name: str, values: Any) -> Any:
    """`dataset` with one more column; `values` has an item per row."""
    # Not imported here: `datasets` may be missing, and whoever has one of its tables imported it.
    library = sys.modules.get("datasets")
    if library is not None and isinstance(dataset, library.Dataset):
        return dataset.add_column(name, values)
    return _WithColumn(dataset, name, values)


def column(dataset: Any, name: str) -> list[Any]:
    """All values of a column."""
    if hasattr(dataset, "column_names"):
        return list(dataset[name][:])  # without the slice a table is read row by row
    return [dataset[i][name] for i in range(len(dataset))]


def refuse_stream(dataset: Any, reason: str) -> None:
    """Raises UsageError, with what is done to the whole training set, if it is a stream."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise UsageError(f"{reason}, which a stream does not allow")


def with_example_ids(dataset: Any) -> Any:
    """`dataset` with its row numbers as `example_id`, unless its rows have that already.

    Raises:
        ValueError: for a stream without that column: its rows have no number to draw masks by.
    """
    columns = getattr(dataset, "column_names", None)
    if dataset is None or "example_id" in (columns or ()):
        return dataset
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return with_column(dataset, "example_id", np.arange(len(dataset)))
    # A stream that was mapped does not know its columns, and one of torch's has no list of them.
    if columns is None and "example_id" in next(iter(dataset), ()):
        return dataset
    raise ValueError(
        "train_dataset is a stream without an example_id column: add each row's number as one"
    )
