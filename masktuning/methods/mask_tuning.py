"""Mask-tuning (arXiv 2307.10457): classify what the masked LM made of the masked text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from masktuning.data.collator import MASK_FIELDS
from masktuning.methods.step import StepContext, StepTerms
from masktuning.ops import dual_cross_entropy
from masktuning.ops.dual_cross_entropy import mean_over


class MaskTuning:
    """L = alpha * L_MLM + (1 - alpha) * L_FT, with L_FT on the perturbed examples only, Eq. (1).

    The predictions carry no gradient, so the two terms share no graph: alpha * L_MLM is
    back-propagated and pass A freed before pass B runs. The gradient is that of the sum and the
    peak memory near that of plain fine-tuning. With alpha = 0 pass A runs without a graph: the
    paper's ablation "without integrated loss" (section VI).
    """

    needs_mlm_head = True

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def step(self, model: nn.Module, batch: dict[str, Any], context: StepContext) -> StepTerms:
        labels_B = batch["labels"]
        passes = self._two_phase if context.two_phase else self._joint
        return passes(model, batch, labels_B, context)

    def _two_phase(
        self, model: nn.Module, batch: dict[str, Any], labels_B: Tensor, context: StepContext
    ) -> StepTerms:
        assert context.perturbation is not None
        with context.no_sync(), torch.set_grad_enabled(self.alpha > 0):
            output, targets_M = model(
                **batch, phase="masked_lm", rng=context.rng, perturbation=context.perturbation
            )
            if self.alpha > 0:
                mlm = mean_over(output.losses.sum(), context.denominators[0])
                context.backward(self.alpha * mlm, mlm=True)
        perturbed = {k: v for k, v in batch.items() if k not in MASK_FIELDS}
        original_ids = perturbed.pop("input_ids")
        logits = model(
            output.input_ids,
            **perturbed,
            original_ids=original_ids if context.perturbation.include_original else None,
        ).logits
        losses_M = output.losses.detach()
        return self._finish(losses_M, logits, labels_B, output.tokens, targets_M, context)

    def _joint(
        self, model: nn.Module, batch: dict[str, Any], labels_B: Tensor, context: StepContext
    ) -> StepTerms:
        (output, targets_M), logits = model(
            **batch, phase="joint", rng=context.rng, perturbation=context.perturbation
        )
        return self._finish(output.losses, logits, labels_B, output.tokens, targets_M, context)

    def _finish(
        self,
        losses_M: Tensor,
        logits: Tensor,
        labels_B: Tensor,
        tokens_M: Tensor,
        targets_M: Tensor,
        context: StepContext,
    ) -> StepTerms:
        denominators = context.denominators
        if context.perturbation is not None and context.perturbation.include_original:
            labels_B = torch.cat([labels_B, labels_B])
            denominators = torch.stack([denominators[0], 2 * denominators[1]])
        dual = dual_cross_entropy(
            losses_M, logits, labels_B, denominators, self.alpha, context.label_smoothing
        )
        context.backward(dual.loss)
        real_M = targets_M >= 0
        return StepTerms(
            dual.loss.detach(),
            dual.mlm.detach(),
            dual.classification.detach(),
            ((tokens_M == targets_M) & real_M).sum(),
            real_M.sum(),
        )
