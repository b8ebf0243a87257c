"""PoE (Karimi Mahabadi et al. 2020): a product of experts whose biased expert is trained too.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.bias.head import BiasHeadMethod, BiasHeadOptions
from masktuning.methods.step import Step


@dataclass
class PoeOptions(BiasHeadOptions):
    """The options of PoE."""

    _argument_group_name = "poe"


class Poe(BiasHeadMethod):
    """L = CE(log_softmax(f(x)) + log_softmax(g(x)), y) + CE_w(g(x), y), for sentence pairs.

    f(x) are the classifier's logits [B, C] and g(x) those of a bias head [B, C], which is trained
    together with the model. The gradient of both terms reaches the head, and none of it goes
    through the head to the encoder. Only f is evaluated. See section 3 of the paper.

    With `bias_head` "overlap" the head sees six numbers per pair: whether all word pieces of the
    second text are in the first one, whether they are a contiguous part of it, the share of its
    different word pieces that are in it, and the smallest, mean and largest value of
    max_j cos(h_i, p_j) over the tokens i of the second text, with the encoder's last states of both
    texts apart. It has three linear layers with tanh between them. CE_w gives entailment the weight
    1 and each of the other labels 1 / (C - 1), in NLI 0.5 as in the authors' script; all weights
    are 1 in tasks without entailment. With "hypothesis" the head sees the pooled state of the
    second text alone, has four linear layers, and all weights are 1.

    Deviations: whether the second text is a phrase of the first one's parse is left out, since
    there is no parse (in the authors' runs that feature was always 0, for their reader of parses
    expected another format). The encoder's states for the head are computed without dropout, so
    that what the head sees does not depend on a random draw. Each text attends to its own tokens
    only; in the authors' code each has the mask of the other.

    Equivalent to::

        log_f_BC, log_g_BC = model(**batch).logits.log_softmax(-1), head(seen).log_softmax(-1)
        main = F.cross_entropy(log_f_BC + log_g_BC, labels_B)
        return main + F.cross_entropy(log_g_BC, labels_B, weight=w_C)
    """

    Options = PoeOptions
    terms = ("poe",)
    paper = (
        'Karimi Mahabadi et al., "End-to-End Bias Mitigation by Modelling Biases in Corpora", '
        "arXiv 1909.06321"
    )
    when = (
        "Your sentence pairs have a shortcut in the words that they share or in the second text, "
        "and you want to train in one run without a bias model of your own."
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, since both terms share the bias head."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        bias_BC = self.bias_logits(batch)
        log_f_BC, log_g_BC = (F.log_softmax(x.float(), -1) for x in (logits_BC, bias_BC))
        main = step.cross_entropy(log_f_BC + log_g_BC, batch.labels)
        bias = self.bias_loss(bias_BC, batch, step)
        plain = step.cross_entropy(logits_BC.detach(), batch.labels)
        step.log(loss_cls=plain, loss_product=main, loss_bias=bias)
        yield main + bias
