"""Plain fine-tuning: cross-entropy on the clean text, through the same trainer as the others."""

from __future__ import annotations

from typing import Any

from torch import nn

from masktuning.methods.step import StepContext, StepTerms
from masktuning.ops import dual_cross_entropy


class Finetuning:
    """L = L_FT on the original examples (run_glue's recipe); alpha plays no part."""

    needs_mlm_head = False

    def __init__(self, alpha: float) -> None:
        del alpha

    def step(self, model: nn.Module, batch: dict[str, Any], context: StepContext) -> StepTerms:
        logits_BC = model(**batch).logits
        none = logits_BC.new_zeros(0, dtype=context.denominators.dtype)
        dual = dual_cross_entropy(
            none, logits_BC, batch["labels"], context.denominators, 0.0, context.label_smoothing
        )
        context.backward(dual.loss)
        zero = dual.mlm.detach()
        return StepTerms(dual.loss.detach(), zero, dual.classification.detach(), zero, zero)
