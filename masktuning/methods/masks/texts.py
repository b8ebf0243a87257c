"""The token ids and labels of a whole training set, for policies that count tokens by label.

Shapes: V token ids, C labels, n rows of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masktuning.config.errors import UsageError
from masktuning.data.example_ids import column


def ids_and_labels(train: Any, policy: str) -> tuple[list[NDArray[Any]], NDArray[Any]]:
    """An array of token ids per row, and the labels [n] of all rows.

    Raises:
        UsageError: naming `policy`, for a stream, which cannot be counted, and for rows without
            labels.
    """
    if not hasattr(train, "__len__"):
        raise UsageError(
            f"--mask_policy {policy}: tokens are counted by label over the whole training set, "
            "which a stream does not allow; use --mask_policy random"
        )
    name = next((one for one in ("labels", "label") if len(train) and one in train[0]), None)
    labels = np.asarray([] if name is None else column(train, name))
    if not (labels >= 0).any():
        raise UsageError(
            f"--mask_policy {policy}: tokens are counted by label, so the training set needs labels"
        )
    return [np.asarray(row) for row in column(train, "input_ids")], labels


def counts_by_label(
    rows: Sequence[NDArray[Any]], labels: NDArray[Any], vocab_size: int, once: bool = False
) -> NDArray[np.float64]:
    """[C, V] how often each token occurs in the rows with each label; negative labels are ignored.

    Args:
        rows: n arrays of token ids.
        labels: [n] label ids.
        vocab_size: V.
        once: whether a token counts once per row, however often the row contains it.
    """
    labels_C = int(labels.max()) + 1
    # Row and token in one number, so that all rows are counted in one pass.
    cells = np.repeat(np.arange(len(rows)), [len(row) for row in rows]) * vocab_size
    cells += np.concatenate(rows)
    cells = np.unique(cells) if once else cells
    label_of_token = labels[cells // vocab_size]
    known = label_of_token >= 0
    cells = label_of_token[known] * vocab_size + cells[known] % vocab_size
    counts = np.bincount(cells, minlength=labels_C * vocab_size)
    return counts.reshape(labels_C, vocab_size).astype(np.float64)
