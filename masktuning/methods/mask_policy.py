"""Mask policies: which tokens are masked, by their association with the labels.

`random` is the paper's policy. `spare` keeps label-bearing tokens from being masked and `aim` masks
them first; both mask as many tokens of each example as `random` does.

Shapes: B examples, L tokens, V token ids, C labels, n rows of the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.example_ids import column, with_column

RANDOM = "random"
POLICIES = (RANDOM, "spare", "aim")
COLUMN = "label_bearing"
_Z = 2.0  # from this absolute z-score on, a token is said to bear a label


def with_label_bearing(train: Any, vocab_size: int) -> Any:
    """The training set with the column `label_bearing`: a flag for each token of each row.

    Raises:
        UsageError: for a stream, which cannot be counted, and for rows without labels.
    """
    if not hasattr(train, "__len__"):
        raise UsageError(
            "--mask_policy spare and aim count tokens by label over the whole training set, which "
            "a stream does not allow: use --mask_policy random"
        )
    name = next((one for one in ("labels", "label") if len(train) and one in train[0]), None)
    if name is None:
        raise UsageError("--mask_policy spare and aim need the labels of the training set")
    ids = [np.asarray(row) for row in column(train, "input_ids")]
    scores_V = label_association(ids, np.asarray(column(train, name)), vocab_size)
    bearing_V = scores_V >= _Z
    return with_column(train, COLUMN, [bearing_V[row].tolist() for row in ids])


def label_association(
    rows: Sequence[NDArray[Any]], labels: NDArray[Any], vocab_size: int
) -> NDArray[np.float64]:
    """[V] how strongly the presence of a token is associated with a label.

    For token v and label c it is the absolute z-score of the log odds ratio of "the text contains
    v" between the texts with label c and all others, with 0.5 added to each of the four counts
    (Haldane and Anscombe); the largest over the labels. Negative labels are ignored.

    Args:
        rows: n arrays of token ids.
        labels: [n] label ids.
        vocab_size: V.
    """
    counts_CV, texts_C = _texts_with_token(rows, labels, vocab_size)
    with_v, texts = counts_CV.sum(0), texts_C.sum()
    largest_V = np.zeros(vocab_size)
    for inside_V, of_label in zip(counts_CV, texts_C, strict=True):
        outside_V = with_v - inside_V
        a, b = inside_V + 0.5, of_label - inside_V + 0.5
        c, d = outside_V + 0.5, texts - of_label - outside_V + 0.5
        z_V = np.abs(np.log(a * d / (b * c))) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
        largest_V = np.maximum(largest_V, z_V)
    largest_V[with_v == 0] = 0
    return largest_V


def _texts_with_token(
    rows: Sequence[NDArray[Any]], labels: NDArray[Any], vocab_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The number of texts with each label that contain each token [C, V], and of all texts [C]."""
    if not (labels >= 0).any():
        raise UsageError("--mask_policy spare and aim need the labels of the training set")
    labels_C = int(labels.max()) + 1
    row_of_token = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    once = np.unique(row_of_token * vocab_size + np.concatenate(rows))  # each token of a text
    label_of_token = labels[once // vocab_size]
    known = label_of_token >= 0
    cells = label_of_token[known] * vocab_size + once[known] % vocab_size
    counts = np.bincount(cells, minlength=labels_C * vocab_size).astype(np.float64)
    texts_C = np.bincount(labels[labels >= 0], minlength=labels_C).astype(np.float64)
    return counts.reshape(labels_C, vocab_size), texts_C


def choose_maskable(policy: str, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """[B, L] bool, the tokens that may be masked under a policy other than `random`.

    Where a text has fewer preferred tokens than are to be masked, all of its tokens may be, so that
    the number of masked tokens does not depend on the policy.

    Raises:
        ValueError: if the rows lack the column `label_bearing`, or it does not fit the tokens.
    """
    maskable_BL, offsets = batch.maskable, batch.offsets
    assert maskable_BL is not None and offsets is not None
    if any(COLUMN not in row for row in rows):
        raise ValueError(f"mask_policy {policy} needs the column {COLUMN!r} of the training set")
    real_BL = torch.ones_like(maskable_BL)
    if batch.attention_mask is not None:
        real_BL = batch.attention_mask.bool()
    flags = torch.tensor([flag for row in rows for flag in row[COLUMN]])
    if len(flags) != int(real_BL.sum()):
        raise ValueError(
            f"the column {COLUMN!r} has {len(flags)} flags for {int(real_BL.sum())} tokens of a "
            "batch: the collator must not shorten texts"
        )
    bearing_BL = torch.zeros_like(maskable_BL)
    bearing_BL[real_BL] = flags
    preferred_BL = maskable_BL & (bearing_BL if policy == "aim" else ~bearing_BL)
    enough_B = preferred_BL.sum(1) >= offsets.diff()
    return torch.where(enough_B[:, None], preferred_BL, maskable_BL)
