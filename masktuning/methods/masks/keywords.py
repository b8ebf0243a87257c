"""Keywords as the tokens that may be masked (MASKER, Moon et al., AAAI 2021).

Shapes: B examples, L tokens, V token ids, C labels, n rows of the training set.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.example_ids import with_column
from masktuning.methods.base import Stage
from masktuning.methods.masks.attention import STAGE, attention_by_label
from masktuning.methods.masks.base import MaskPolicy, column_of, offsets_of, set_masked
from masktuning.methods.masks.texts import counts_by_label, ids_and_labels
from masktuning.modeling.shared_encoder import MaskTuningModel

COLUMN = "keyword"
_PER_LABEL = 10  # as in MASKER
ATTENTION = "keywords_attention"


class Keywords(MaskPolicy):
    """The policies `keywords` and `keywords_attention`: only keywords are masked.

    The keywords are, of each label, the 10 tokens with the highest score, special tokens left out.
    The score of `keywords` is tf-idf; that of `keywords_attention` is the attention that the first
    token pays them in a classifier that was fine-tuned before, the stage `keywords`; see
    `tf_idf` and `attention_by_label`. Of a text of which `random` masks k tokens, k keywords are
    masked, or all of its keywords where it has fewer; the choice among them is random.
    """

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """A plain fine-tuning, whose attention is read."""
        return [Stage(STAGE, "finetuning")] if options.mask_policy == ATTENTION else []

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """Adds the column `keyword`: a flag for each token of each row.

        Raises:
            UsageError: for a stream, for rows without labels, and if the stage's checkpoint is
                missing.
        """
        rows, labels = ids_and_labels(train, self.name)
        if self.name == ATTENTION:
            device = next(model.parameters()).device
            scores_CV = attention_by_label(train, labels, cache / STAGE, self.tokenizer, device)
        else:
            scores_CV = tf_idf(rows, labels, self.vocab_size)
        flags_V = np.zeros(self.vocab_size, dtype=bool)
        flags_V[keyword_ids(scores_CV, self.tokenizer.all_special_ids)] = True
        return with_column(train, COLUMN, [flags_V[row].tolist() for row in rows])

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Narrows the tokens that may be masked to the keywords."""
        assert batch.maskable is not None and batch.offsets is not None
        keyword_BL = (
            column_of(batch, rows, COLUMN, f"mask_policy {self.name}", torch.bool) & batch.maskable
        )
        counts_B: Tensor = torch.minimum(batch.offsets.diff(), keyword_BL.sum(1))
        return set_masked(batch, keyword_BL, offsets_of(counts_B))


def tf_idf(
    rows: Sequence[NDArray[Any]], labels: NDArray[Any], vocab_size: int
) -> NDArray[np.float64]:
    """[C, V] how typical each token is for each label.

    The frequency of token v among all tokens of the texts with label c, times
    log((1 + n) / (1 + d)), with d of all n texts containing v. Rows with a negative label are
    left out.

    Args:
        rows: n arrays of token ids.
        labels: [n] label ids.
        vocab_size: V.
    """
    tokens_CV = counts_by_label(rows, labels, vocab_size)
    texts_with_V = counts_by_label(rows, labels, vocab_size, once=True).sum(0)
    idf_V = np.log((1 + (labels >= 0).sum()) / (1 + texts_with_V))
    return tokens_CV / np.maximum(tokens_CV.sum(1, keepdims=True), 1) * idf_V


def keyword_ids(scores_CV: NDArray[np.float64], special_ids: Sequence[int]) -> NDArray[np.intp]:
    """The ids with the 10 highest scores of each label, in ascending order; ties to the lower id.

    A score must be above 0.
    """
    scores_CV = scores_CV.copy()
    scores_CV[:, [i for i in special_ids if i < scores_CV.shape[1]]] = 0
    best = np.argsort(-scores_CV, axis=1, kind="stable")[:, :_PER_LABEL]
    found = [row[scores[row] > 0] for row, scores in zip(best, scores_CV, strict=True)]
    return np.unique(np.concatenate(found))
