"""RUBi (Cadene et al. 2019) for sentence pairs: a trained bias head masks the logits.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.bias.head import BiasHeadMethod, BiasHeadOptions
from masktuning.methods.step import Step


@dataclass
class RubiOptions(BiasHeadOptions):
    """The options of RUBi."""

    _argument_group_name = "rubi"


class Rubi(BiasHeadMethod):
    """L = CE(f(x) * sigmoid(g(x)), y) + CE_w(g(x), y), for sentence pairs.

    f(x) are the classifier's logits [B, C] and g(x) those of a bias head [B, C] that is trained
    together with the model. The product is taken per label: it lowers the loss of examples that the
    head predicts well and raises that of the others. The bias head, its cross-entropy CE_w and what
    its gradient reaches are those of `poe`. Only f is evaluated. The loss is that of the code of
    Karimi Mahabadi et al. (arXiv 1909.06321), who compare with RUBi on sentence pairs.

    Deviations: those of `poe`.

    Equivalent to::

        bias_BC = head(seen)
        main = F.cross_entropy(model(**batch).logits * bias_BC.sigmoid(), labels_B)
        return main + F.cross_entropy(bias_BC, labels_B, weight=w_C)
    """

    Options = RubiOptions
    terms = ("rubi",)
    paper = (
        'Cadene et al., "RUBi: Reducing Unimodal Biases for Visual Question Answering", '
        "arXiv 1906.10169"
    )
    when = "You want to compare `poe` with an earlier way of training with a bias head."

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, since both terms share the bias head."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        bias_BC = self.bias_logits(batch)
        main = step.cross_entropy(logits_BC.float() * bias_BC.float().sigmoid(), batch.labels)
        bias = self.bias_loss(bias_BC, batch, step)
        plain = step.cross_entropy(logits_BC.detach(), batch.labels)
        step.log(loss_cls=plain, loss_masked=main, loss_bias=bias)
        yield main + bias
