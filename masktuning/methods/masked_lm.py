"""The masked LM alone, on the texts of the task: what sequential training begins with.

Shapes: B examples, L tokens, M masked positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Stage
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.perturbation_options import same_option
from masktuning.methods.step import Step


@dataclass
class MaskedLMOptions:
    """The options of training the masked LM alone."""

    _argument_group_name = "masked_lm"

    mask_rate: float = same_option("mask_rate")
    min_per_example: int = same_option("min_per_example", default=1)
    corruption: str = same_option("corruption")

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        self.of_mask_tuning().check()

    def of_mask_tuning(self) -> MaskTuningOptions:
        """The options with which `MaskTuning` masks texts like this, and trains the masked LM."""
        return MaskTuningOptions(
            alpha=1.0,
            mask_rate=self.mask_rate,
            min_per_example=self.min_per_example,
            corruption=self.corruption,
        )


class MaskedLM(MaskTuning):
    """L = L_MLM = CE(g(masked x), x) on the masked positions: no classifier is trained.

    g(masked x) [M, V] are the masked LM's logits at the M masked positions of a batch of texts
    [B, L], and their targets [M] are the original tokens. The loss is Mask-tuning's with alpha 1,
    but the second pass, which would have no weight, is left out. It is the first phase of the
    paper's "sequential training" (section VI) and its comparison "MLM" for the plausibility of
    perturbations (section V). Labels are not used, but the rows must
    have some; -100 is none. The classifier's head stays as it was
    initialised, so the accuracy of this run means nothing; what counts is the encoder and the
    masked LM, which another run may start from.

    The mask rate of 5 % is the paper's.

    Deviations: none.

    Equivalent to::

        logits_MV = mlm(mask(x)).logits[masked]
        return F.cross_entropy(logits_MV, x[masked])
    """

    Options = MaskedLMOptions
    terms = ("mlm",)
    when: ClassVar[str] = (
        "Choose it to adapt a masked LM to the texts of a task before another method starts from "
        "its checkpoint."
    )

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """No stages: tokens are masked at random and replaced by the masked LM's predictions."""
        return []

    def configure(self, options: Any) -> None:
        """Applies the options; `self.options` are then those of Mask-tuning. See `Method`."""
        super().configure(options.of_mask_tuning())

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the mean over the masked positions."""
        output, targets_M = self._masked_lm(batch, step.rng)
        self._log(step, output, targets_M)
        loss = step.mean(output.losses, over="masked")
        step.log(over="masked", loss_mlm=loss)
        yield loss

    def advice(self, metrics: Mapping[str, float]) -> str:
        """Says what the accuracies are worth."""
        return (
            "Only the masked LM was trained. The classifier has learned nothing, so its accuracy "
            "means nothing."
        )
