"""Row numbers as `example_id`, which the masks are drawn by."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch.utils.data


class _Numbered(torch.utils.data.Dataset):
    """A map-style dataset of mappings, with its row numbers as `example_id`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example_id": index, **self.rows[index]}


def with_example_ids(dataset: Any) -> Any:
    """`dataset` with its row numbers as `example_id`, unless its rows have that already.

    Raises:
        ValueError: for a stream without that column: its rows have no number to draw masks by.
    """
    columns = getattr(dataset, "column_names", None) or ()
    if dataset is None or "example_id" in columns:
        return dataset
    # Not imported here: `datasets` may be missing, and whoever has one of its tables imported it.
    library = sys.modules.get("datasets")
    if library is not None and isinstance(dataset, library.Dataset):
        return dataset.add_column("example_id", np.arange(len(dataset)))
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return _Numbered(dataset)
    raise ValueError(
        "train_dataset is a stream without an example_id column: add each row's number as one"
    )
