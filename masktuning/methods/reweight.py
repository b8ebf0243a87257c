"""Reweight (Clark et al. 2019): examples that a frozen bias model explains count less.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.bias.method import COLUMN, BiasMethod, BiasOptions, of_label
from masktuning.methods.step import Step

_WEIGHTS = "example_weights"  # the count that the weighted losses are divided by


@dataclass
class ReweightOptions(BiasOptions):
    """The options of reweighting."""

    _argument_group_name = "reweight"


class Reweight(BiasMethod):
    """L = sum_i w_i CE(f(x_i), y_i) / sum_i w_i, with w_i = 1 - b(x_i)[y_i].

    f(x) are the classifier's logits [B, C] and b(x) the probabilities [B, C] of a frozen bias-only
    model. An example whose label b predicts with certainty has the weight 0. The sums are over the
    whole optimizer step. This is the baseline "reweight" of section 4 of the paper. The bias model
    is chosen with `bias_model`. Class weights and label smoothing are not used.

    Deviations: those of the bias models of `bias_product`.

    Equivalent to::

        weights_B = 1 - b_BC[torch.arange(B), labels_B]
        losses_B = F.cross_entropy(model(**batch).logits, labels_B, reduction="none")
        return (weights_B * losses_B).sum() / weights_B.sum()
    """

    Options = ReweightOptions
    terms = ("reweighted",)
    paper = (
        "Clark et al., \"Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known "
        'Dataset Biases", arXiv 1909.03683'
    )
    when = (
        "You can name a shortcut in your training set and many examples contradict it, so that "
        "enough of the data keeps its weight."
    )

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Labels, and the sum of the examples' weights."""
        return {**super().counts(batch), _WEIGHTS: _weights(batch).sum()}

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the weighted cross-entropy."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        step.log(loss_cls=step.cross_entropy(logits_BC.detach(), batch.labels))
        losses_B = F.cross_entropy(logits_BC.float(), batch.labels, reduction="none")
        weights_B = _weights(batch)
        step.log(example_weight=step.mean(weights_B))
        yield step.mean(weights_B * losses_B, over=_WEIGHTS)


def _weights(batch: Batch) -> Tensor:
    """[B], one minus the bias model's probability of the label; 0 for an example without one."""
    weights_B = -of_label(batch.columns[COLUMN], batch.labels).expm1()
    return weights_B * (batch.labels != -100)
