"""L3Masking (Kimura, Komamizu and Hatano, 2024): mask what the model found unlikely before.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.example_ids import with_column
from masktuning.methods.masks.base import column_of
from masktuning.methods.masks.l3 import COLUMN, l3_thresholds
from masktuning.methods.multi_task.method import MultiTask, MultiTaskOptions


@dataclass
class L3MaskingOptions(MultiTaskOptions):
    """The options of L3Masking."""

    _argument_group_name = "l3masking"

    scorer: str | None = field(
        default=None,
        metadata={
            "help": "A causal LM (a folder or a hub id) with the model's tokenizer, which says how "
            "unlikely each token is after those before it. By default the model itself says so, "
            "before its training."
        },
    )


class L3Masking(MultiTask):
    """L = w * L_MLM + (1 - w) * L_CLS, with L_CLS on the texts as they are.

    As `random_token_masking`, whose documentation explains both losses and their weights, but
    unlikely tokens are masked more often. Before training, each token t_i of each text gets the
    score

        s_i = -log P(t_i | context)

    from the model as it is then, without dropout: the mask stands in the places of t_i and of the
    later tokens of its word ("within_word_l2r"). Special tokens have the score 0. With the rate
    r = `mask_rate`, 0.15 in the paper, and a_i = (s_i - min s) / (max s - min s) within each text,

        q_i = a_i * r / mean(a), and mask_i ~ Bernoulli(q_i),

    where what exceeds 1 is shared equally among the tokens below 1, until none exceeds it, so that
    the mean of q over the text's tokens (special ones not counted) is r. 80 % of the masked tokens
    show the mask, 10 % a random token and 10 % their own. Scoring reads each text once for each of
    its tokens; the scores are kept in the run folder's `stages/`. With `scorer` a causal LM gives
    s_i = -log P(t_i | t_1 ... t_(i-1)) instead, in one reading of each text.

    Deviations: as coded by the authors, q is clipped at 1 before it is shared, so nothing is shared
    and the mean falls below r; here it is shared, which is the stated intent. Scores are computed
    once, where the authors' code computes them again in each batch, after a change of the spaces
    around punctuation that is left out here. A word is what the marks of the tokenizer's vocabulary
    say, since the training set holds no raw text. There is no fallback to random masking on errors.
    The deviations of `random_token_masking` hold as well. `scorer` is ours.

    Equivalent to::

        chosen = torch.rand(ids.shape) < q
        L_MLM = F.cross_entropy(masked_lm(corrupt(ids, chosen))[chosen], ids[chosen])
        return w * L_MLM + (1 - w) * F.cross_entropy(classifier(ids), y)
    """

    Options = L3MaskingOptions
    masks_at_random = False
    paper = (
        'Kimura et al., "L3Masking: Multi-task Fine-tuning for Language Models by Leveraging '
        'Lessons Learned from Vanilla Models", CustomNLP4U 2024, '
        "https://aclanthology.org/2024.customnlp4u-1.6"
    )
    when = (
        "When the task's texts hold words and phrases that the pre-trained model does not expect, "
        "such as those of a science, and reading each text once per token before training is "
        "affordable."
    )

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the column of thresholds, unless the training set has it already."""
        if hasattr(train, "__len__") and COLUMN in train[0]:
            return train
        options = self.options
        column = l3_thresholds(
            train, self.tokenizer, self.model, options.mask_rate, options.scorer, cache
        )
        return with_column(train, COLUMN, column)

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The column of thresholds, padded."""
        return column_of(batch, rows, COLUMN, "l3masking", torch.int64)
