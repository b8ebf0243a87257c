"""Token ids of many texts in one array, and training sets that are made of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from masktuning.data.example_ids import column, with_column


class TokenRows(Sequence[list[int]]):
    """Lists of token ids, one per text, held in one array.

    Args:
        tokens: int32, the texts one after the other.
        lengths: int64, the number of tokens of each text.
    """

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.tokens = tokens
        self.lengths = lengths
        self.starts = np.cumsum(lengths) - lengths

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenRows:
        """The rows of a column such as `input_ids`."""
        lengths = np.array([len(row) for row in rows], np.int64)
        tokens = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(tokens, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        """The token ids of one text."""
        return self.slot(index).tolist()

    def slot(self, index: int) -> np.ndarray:
        """The part of the array that holds one text; it may be written to."""
        start = self.starts[index]
        return self.tokens[start : start + self.lengths[index]]

    def equal_rows(self, other: TokenRows) -> np.ndarray:
        """Bool, whether each text is the same in `other`, whose texts have the same lengths."""
        differ = np.concatenate([[0], np.cumsum(self.tokens != other.tokens)])
        return differ[self.starts] == differ[self.starts + self.lengths]

    def arrow(self) -> Any:
        """The rows as a column for a table of `datasets`, without a Python list for each."""
        import pyarrow

        offsets = np.append(self.starts, len(self.tokens)).astype(np.int32)
        return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(self.tokens))


def with_token_column(dataset: Any, name: str, rows: TokenRows) -> Any:
    """`dataset` with the rows as one more column."""
    return with_column(dataset, name, rows.arrow() if _is_table(dataset) else rows)


def followed_by_copies(dataset: Any, rows: TokenRows) -> Any:
    """`dataset`, then a copy of each row with `rows` as its `input_ids`.

    The `example_id` of a copy is that of its original plus one more than the largest one, so it is
    nobody else's.
    """
    originals = np.asarray(column(dataset, "example_id"), dtype=np.int64)
    ids = originals + originals.max() + 1
    if not _is_table(dataset):
        copies = [
            {**dataset[i], "input_ids": rows[i], "example_id": int(ids[i])} for i in range(len(ids))
        ]
        return [*(dataset[i] for i in range(len(ids))), *copies]
    library = sys.modules["datasets"]
    features = dataset.features
    copied = dataset.remove_columns(["input_ids", "example_id"])
    copied = copied.add_column("input_ids", rows.arrow(), feature=features["input_ids"])
    copied = copied.add_column("example_id", ids, feature=features["example_id"])
    return library.concatenate_datasets([dataset, copied])


def _is_table(dataset: Any) -> bool:
    # Not imported here: `datasets` may be missing, and whoever has one of its tables imported it.
    library = sys.modules.get("datasets")
    return library is not None and isinstance(dataset, library.Dataset)
