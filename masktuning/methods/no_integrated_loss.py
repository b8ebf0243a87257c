"""Mask-tuning without the integrated loss: an ablation of arXiv 2307.10457, section VI.

Shapes: B examples, L tokens, M masked positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Stage
from masktuning.methods.frozen_generator import FrozenGenerator, freeze_mlm_head
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.perturbation_options import PerturbationOptions
from masktuning.ops import MaskedLMOutput

GENERATORS = ("shared", "frozen")


@dataclass
class NoIntegratedLossOptions(PerturbationOptions):
    """The options of Mask-tuning without the integrated loss."""

    _argument_group_name = "no_integrated_loss"

    generator: str = field(
        default="shared",
        metadata={
            "help": "Which masked LM replaces tokens: shared is the one on the encoder that is "
            "being trained; frozen is a copy of the checkpoint as it was before training.",
            "choices": [*GENERATORS],
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if self.generator not in GENERATORS:
            raise ValueError(f"generator is {self.generator}: give {' or '.join(GENERATORS)}")


class NoIntegratedLoss(MaskTuning):
    """L = L_FT = CE(f(x_hat), y), where x_hat is x with masked tokens replaced by predictions.

    x_hat [B, L] is the perturbed text of Mask-tuning, drawn anew in each epoch, f(x_hat) [B, C] are
    the classifier's logits and y [B] the labels of the original texts. The masked-LM loss is
    logged, but nothing is trained with it: the paper's ablation "without integrated loss" (section
    VI), whose loss is that of fine-tuning alone. With `generator="shared"` the predictions come
    from the encoder that is being trained, which is `mask_tuning` with alpha 0. The masked LM then
    decays as the encoder moves away from what its head was trained on, and so do the perturbations.
    With `generator="frozen"` they come from a copy of the checkpoint as it was before training, in
    evaluation mode.

    The mask rate of 5 %, the argmax (`top_k` 1) and the masking by the mask token are the paper's;
    the paper does not say which generator it used, and a shared one agrees best with its results.

    Deviations: `min_per_example` is 0, as for `mask_tuning` here, so that both can be compared;
    with the paper's settings (`--preset paper`) it is 1. The masked-LM head gets no gradient, but
    its decoder's weight is trained wherever it is the encoder's own embedding.

    Equivalent to::

        with torch.no_grad():
            perturbed = substitute(mask(x), mlm_logits_MV.argmax(1))
        return F.cross_entropy(model(perturbed).logits, y)
    """

    Options = NoIntegratedLossOptions
    when: ClassVar[str] = (
        "Choose it to measure how much of Mask-tuning's effect is due to training the masked LM "
        "together with the classifier."
    )
    _frozen: FrozenGenerator | None = None

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """No stages: tokens are masked at random and replaced by the masked LM's predictions."""
        return []

    def configure(self, options: Any) -> None:
        """Applies the options; `self.options` are then those of Mask-tuning. See `Method`."""
        known = options.of_mask_tuning()
        super().configure(known)
        if options.generator == "frozen" and self._frozen is None:
            self._frozen = FrozenGenerator(self.model, self.tokenizer, known)
            freeze_mlm_head(self.model)

    def advice(self, metrics: Any) -> str:
        """No advice, since no masked-LM loss is minimised."""
        return ""

    def _masked_lm(self, batch: Batch, rng: Tensor) -> tuple[MaskedLMOutput, Tensor]:
        """Pass A, by the frozen copy if there is one."""
        if self._frozen is None:
            return super()._masked_lm(batch, rng)
        return self._frozen.on(batch.input_ids.device)._masked_lm(batch, rng)
