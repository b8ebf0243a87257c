"""Random Token Masking: fine-tuning with a masked LM on the task's own texts as a second task.

The baseline of L3Masking (Kimura, Komamizu and Hatano, 2024); the multi-task training itself is
that of Dery et al. (arXiv 2109.07437).

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.multi_task.method import MultiTask, MultiTaskOptions


@dataclass
class RandomTokenMaskingOptions(MultiTaskOptions):
    """The options of Random Token Masking."""

    _argument_group_name = "random_token_masking"


class RandomTokenMasking(MultiTask):
    """L = w * L_MLM + (1 - w) * L_CLS, with L_CLS on the texts as they are.

    L_CLS is the cross-entropy of the classifier on the batch's texts, of which none is masked or
    perturbed. L_MLM is the mean cross-entropy of the masked LM over the masked tokens of a copy of
    these texts, on the same encoder in a second pass: each token but the special ones is masked
    with the probability `mask_rate`, independently of all others (Bernoulli), and of the masked
    tokens 80 % show the mask, 10 % a random token and 10 % their own, as in BERT. Draws depend on
    (seed, epoch, example, token) alone. The two losses are back-propagated one after the other.

    `mask_rate` is 0.15 in the paper. With `task_weights` "fixed", w = `mlm_weight` = 1 / 2, which
    is 1 / (1 + the number of auxiliary losses) in the authors' code. With "meta" (their release
    script), (w, 1 - w) = softmax(v), v starts at zero, and after each optimiser step v_k grows by
    0.01 * cos(g_dev, g_k): g_k is the gradient of the loss k and g_dev that of a held-out loss,
    both on the encoder's layers. In every step a linear classifier of the encoder's first state is
    trained from zero on 32 held-out rows (at most ten steps of AdamW, learning rate 0.001, weight
    decay 0.1, until the loss changes by less than 0.001), and its loss on 64 other ones gives
    g_dev. So "meta" uses up the labels of 96 rows: the classifier is not trained on them. Each step
    costs a forward pass of 32 texts, and a forward and a backward pass of 64, besides its own.

    The script trains roberta-base with a learning rate of 1e-4 (heads 1e-3), batches of 128, up to
    150 epochs, 6 % of warm-up and a weight decay of 0.01, and then fine-tunes the classifier alone.

    Deviations: the held-out rows are rows of the training set, always the same, where the authors'
    code draws them from the dev set; so the dev set that chooses the best checkpoint remains
    unseen. Here the classifier of the held-out rows starts at zero and has no hidden layer, and
    these rows are read without dropout, so that the weights need no random numbers. The gradients
    leave out the embeddings. The stage that fine-tunes the classifier alone afterwards is a
    training of its own, with `--method finetuning` on the result.

    Equivalent to::

        masked_ids, labels = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)(ids)
        L_MLM = F.cross_entropy(masked_lm(masked_ids).flatten(0, 1), labels.flatten())
        return w * L_MLM + (1 - w) * F.cross_entropy(classifier(ids), y)
    """

    Options = RandomTokenMaskingOptions
    paper = (
        'Kimura et al., "L3Masking: Multi-task Fine-tuning for Language Models by Leveraging '
        'Lessons Learned from Vanilla Models", CustomNLP4U 2024, '
        "https://aclanthology.org/2024.customnlp4u-1.6"
    )
    when = (
        "When the task's texts are unlike those of the pre-training and there are few of them, so "
        "that the encoder should also learn their language."
    )

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """The same probability for every token."""
        return torch.full_like(batch.input_ids, round(self.options.mask_rate * 2**32))
