"""Learned-Mixin (Clark et al. 2019): the model learns how far to trust a frozen bias model.

Shapes: B examples, C classes, H width of the pooled state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.bias.method import COLUMN, BiasMethod, BiasOptions
from masktuning.methods.step import Step
from masktuning.modeling.shared_encoder import MaskTuningModel


@dataclass
class LearnedMixinOptions(BiasOptions):
    """The options of Learned-Mixin."""

    _argument_group_name = "learned_mixin"

    entropy_penalty: float = field(
        default=0.03,
        metadata={
            "help": "Weight of the entropy of the scaled bias, which keeps the bias in use "
            "(Learned-Mixin+H); 0 is Learned-Mixin without it."
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if not self.entropy_penalty >= 0:
            raise ValueError(f"entropy_penalty is {self.entropy_penalty}: give 0 or more")


class LearnedMixin(BiasMethod):
    """L = CE(log_softmax(f(x)) + g(x) log b(x), y) + lambda H(softmax(g(x) log b(x))).

    f(x) are the classifier's logits [B, C], b(x) the probabilities [B, C] of a frozen bias-only
    model and g(x) = softplus(w . h + c) [B] says how far the bias model is trusted. h [B, H] is the
    pooled state that the classifier reads, before dropout; w [H] and c are trained together with
    the model, and begin at 0. H is the entropy, averaged over the examples. Since a small entropy
    is rewarded, g cannot shrink until the bias is ignored. Only f is evaluated. See section 3.2 of
    the paper.

    lambda is `entropy_penalty`. The default 0.03 is that of the authors' script for MNLI, which
    makes it Learned-Mixin+H; a later script for QQP uses 0.01. The bias model is chosen with
    `bias_model`.

    Deviations: w and c begin at 0, so that nothing depends on a random draw. The bias models are
    those of `bias_product`, with the deviations told there.

    Equivalent to::

        output = model(**batch, pooled=True)
        bias_BC = F.softplus(gate(output.pooled)) * log_b_BC
        log_q_BC = bias_BC.log_softmax(-1)
        entropy = -(log_q_BC.exp() * log_q_BC).sum(-1).mean()
        product_BC = output.logits.log_softmax(-1) + bias_BC
        return F.cross_entropy(product_BC, labels_B) + penalty * entropy
    """

    Options = LearnedMixinOptions
    requires = frozenset({"pooled"})
    terms = ("mixin",)
    paper = (
        "Clark et al., \"Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known "
        'Dataset Biases", arXiv 1909.03683'
    )
    when = (
        "You can name a shortcut that is right for some examples and wrong for others, and want "
        "the model to learn which."
    )

    def __init__(
        self, model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase, options: Any
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.gate = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, since its two parts share the gate and the encoder."""
        output = self.model(batch.input_ids, **batch.texts(), pooled=True)
        trust_B1 = F.softplus(self.gate(output.pooled).float())
        bias_BC = trust_B1 * batch.columns[COLUMN]
        log_f_BC = F.log_softmax(output.logits.float(), -1)
        product = step.cross_entropy(log_f_BC + bias_BC, batch.labels)
        log_q_BC = F.log_softmax(bias_BC, -1)
        labelled_B = batch.labels != -100
        entropy = step.mean(-(log_q_BC.exp() * log_q_BC).sum(-1) * labelled_B)
        step.log(
            loss_cls=step.cross_entropy(output.logits.detach(), batch.labels),
            bias_entropy=entropy,
            bias_trust=step.mean(trust_B1[:, 0] * labelled_B),
        )
        yield product + self.options.entropy_penalty * entropy
