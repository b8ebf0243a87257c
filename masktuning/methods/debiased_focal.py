"""Debiased focal loss (Karimi Mahabadi et al. 2020): what a trained bias head knows counts less.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.bias.head import BiasHeadMethod, BiasHeadOptions
from masktuning.methods.bias.method import of_label
from masktuning.methods.step import Step


@dataclass
class DebiasedFocalOptions(BiasHeadOptions):
    """The options of the debiased focal loss."""

    _argument_group_name = "debiased_focal"

    focal_gamma: float = field(
        default=2.0,
        metadata={"help": "How fast an example's weight falls with the bias head's probability."},
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if not self.focal_gamma >= 0:
            raise ValueError(f"focal_gamma is {self.focal_gamma}: give 0 or more")


class DebiasedFocal(BiasHeadMethod):
    """L = mean_i (1 - b(x_i)[y_i])^gamma CE(f(x_i), y_i) + CE_w(g(x), y), for sentence pairs.

    f(x) are the classifier's logits [B, C], g(x) those of a bias head [B, C] that is trained
    together with the model, and b = softmax(g). An example that the head predicts well has little
    weight. The bias head, its cross-entropy CE_w and what its gradient reaches are those of `poe`.
    Only f is evaluated. gamma is `focal_gamma`, 2 in the authors' code. See section 3 of the paper.
    Class weights and label smoothing are not used.

    Deviations: those of `poe`.

    Equivalent to::

        p_B = head(seen).softmax(-1)[torch.arange(B), labels_B]
        losses_B = F.cross_entropy(model(**batch).logits, labels_B, reduction="none")
        main = ((1 - p_B) ** gamma * losses_B).mean()
        return main + F.cross_entropy(head(seen), labels_B, weight=w_C)
    """

    Options = DebiasedFocalOptions
    terms = ("focal",)
    paper = (
        'Karimi Mahabadi et al., "End-to-End Bias Mitigation by Modelling Biases in Corpora", '
        "arXiv 1909.06321"
    )
    when = (
        "Your sentence pairs have a shortcut as for `poe`, and you want examples that show it to "
        "count less rather than to be corrected."
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, since both terms share the bias head."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        bias_BC = self.bias_logits(batch)
        p_B = of_label(F.softmax(bias_BC.float(), -1), batch.labels)
        losses_B = F.cross_entropy(logits_BC.float(), batch.labels, reduction="none")
        # Not 0, where a gamma below 1 would have an infinite gradient.
        weights_B = (1 - p_B).clamp(min=1e-6) ** self.options.focal_gamma
        main = step.mean(weights_B * losses_B)
        bias = self.bias_loss(bias_BC, batch, step)
        plain = step.cross_entropy(logits_BC.detach(), batch.labels)
        step.log(loss_cls=plain, loss_main=main, loss_bias=bias)
        yield main + bias
