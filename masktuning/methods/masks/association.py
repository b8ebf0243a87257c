"""Mask policies by the association of tokens with the labels.

`spare` keeps label-bearing tokens from being masked and `aim` masks them first; both mask as many
tokens of each example as `random` does.

Shapes: B examples, L tokens, V token ids, C labels, n rows of the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from masktuning.data.batch import Batch
from masktuning.data.example_ids import with_column
from masktuning.methods.masks.base import MaskPolicy, column_of
from masktuning.methods.masks.texts import counts_by_label, ids_and_labels
from masktuning.modeling.shared_encoder import MaskTuningModel

COLUMN = "label_bearing"
_Z = 2.0  # from this absolute z-score on, a token is said to bear a label


class LabelAssociation(MaskPolicy):
    """The policies `spare` and `aim`."""

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """Adds the column `label_bearing`."""
        return with_label_bearing(train, self.vocab_size)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Narrows which tokens may be masked.

        Where a text has fewer preferred tokens than are to be masked, all of its tokens may be, so
        that the number of masked tokens does not depend on the policy.

        Raises:
            ValueError: if the rows lack the column `label_bearing`, or it does not fit the tokens.
        """
        maskable_BL, offsets = batch.maskable, batch.offsets
        assert maskable_BL is not None and offsets is not None
        bearing_BL = column_of(batch, rows, COLUMN, f"mask_policy {self.name}", torch.bool)
        preferred_BL = maskable_BL & (bearing_BL if self.name == "aim" else ~bearing_BL)
        enough_B = preferred_BL.sum(1) >= offsets.diff()
        batch.maskable = torch.where(enough_B[:, None], preferred_BL, maskable_BL)
        return batch


def with_label_bearing(train: Any, vocab_size: int) -> Any:
    """The training set with the column `label_bearing`: a flag for each token of each row.

    Raises:
        UsageError: for a stream, which cannot be counted, and for rows without labels.
    """
    ids, labels = ids_and_labels(train, "spare and aim")
    scores_V = label_association(ids, labels, vocab_size)
    bearing_V = scores_V >= _Z
    return with_column(train, COLUMN, [bearing_V[row].tolist() for row in ids])


def label_association(
    rows: Sequence[NDArray[Any]], labels: NDArray[Any], vocab_size: int
) -> NDArray[np.float64]:
    """[V] how strongly the presence of a token is associated with a label.

    For token v and label c it is the absolute z-score of the log odds ratio of "the text contains
    v" between the texts with label c and all others, with 0.5 added to each of the four counts
    (Haldane and Anscombe); the largest over the labels. Labels that no text has, or all have, tell
    nothing and are left out; negative labels are ignored.

    Args:
        rows: n arrays of token ids.
        labels: [n] label ids.
        vocab_size: V.
    """
    texts_C = np.bincount(labels[labels >= 0]).astype(np.float64)
    counts_CV = counts_by_label(rows, labels, vocab_size, once=True)
    with_v, texts = counts_CV.sum(0), texts_C.sum()
    largest_V = np.zeros(vocab_size)
    for inside_V, of_label in zip(counts_CV, texts_C, strict=True):
        if of_label in (0, texts):  # nothing to compare: the 0.5s alone would make large scores
            continue
        outside_V = with_v - inside_V
        a, b = inside_V + 0.5, of_label - inside_V + 0.5
        c, d = outside_V + 0.5, texts - of_label - outside_V + 0.5
        z_V = np.abs(np.log(a * d / (b * c))) / np.sqrt(1 / a + 1 / b + 1 / c + 1 / d)
        largest_V = np.maximum(largest_V, z_V)
    largest_V[with_v == 0] = 0
    return largest_V
