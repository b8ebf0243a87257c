"""Plain fine-tuning: cross-entropy on the original texts, by the trainer of all methods."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.step import Step


class Finetuning(Method):
    """L = CE(f(x), y) on the original examples, the baseline of every comparison.

    Equivalent to::

        logits_BC = model(**batch).logits
        return F.cross_entropy(logits_BC, batch.labels)
    """

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        yield step.cross_entropy(logits_BC, batch.labels)
