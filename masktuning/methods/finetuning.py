"""Plain fine-tuning: cross-entropy on the original texts, by the trainer of all methods."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.step import Step


class Finetuning(Method):
    """L = CE(f(x), y) on the original texts, the baseline of every comparison.

    f(x) are the classifier's logits [B, C] and y the labels [B]. This is what `run_glue.py` does.
    To give it the compute of a method with two passes, train it for twice as many epochs.

    Equivalent to::

        logits_BC = model(**batch).logits
        return F.cross_entropy(logits_BC, batch.labels)
    """

    when = "Always, as the baseline: whether another method helps shows only in comparison with it."

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        yield step.cross_entropy(logits_BC, batch.labels)
