"""Bias product (Clark et al. 2019): the model learns what a frozen bias model leaves unexplained.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.bias.method import COLUMN, BiasMethod, BiasOptions
from masktuning.methods.step import Step


@dataclass
class BiasProductOptions(BiasOptions):
    """The options of the bias product."""

    _argument_group_name = "bias_product"


class BiasProduct(BiasMethod):
    """L = CE(log_softmax(f(x)) + log b(x), y), a product of two experts of which one is biased.

    f(x) are the classifier's logits [B, C] and b(x) the probabilities [B, C] of a frozen bias-only
    model, so that the loss has little to learn from an example that b explains. Only f is
    evaluated. This is the bias product of section 3.2 of the paper. The bias model is chosen with
    `bias_model`: `overlap` has the features and settings of the authors' code for MNLI.

    Deviations: the overlap features are computed on word pieces, and their similarities on the
    encoder's input embeddings in place of fastText vectors. The models of words are regressions on
    word pieces, fitted on four fifths of the training set to predict the other fifth.

    Equivalent to::

        log_f_BC = F.log_softmax(model(**batch).logits, -1)
        return F.cross_entropy(log_f_BC + log_b_BC, batch.labels)
    """

    Options = BiasProductOptions
    terms = ("product",)
    paper = (
        "Clark et al., \"Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known "
        'Dataset Biases", arXiv 1909.03683'
    )
    when = (
        "You can name a shortcut in your training set, such as the words that two texts share, and "
        "want the strongest correction for it."
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy of the product."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        step.log(loss_cls=step.cross_entropy(logits_BC.detach(), batch.labels))
        log_f_BC = F.log_softmax(logits_BC.float(), -1)
        yield step.cross_entropy(log_f_BC + batch.columns[COLUMN], batch.labels)
