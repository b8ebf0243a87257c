"""The operations of a training step, each with its PyTorch reference and its back ends."""

from masktuning.ops.dual_cross_entropy import DualLoss, dual_cross_entropy
from masktuning.ops.mask_sampling import MaskedTokens, sample_masks
from masktuning.ops.masked_lm_head import (
    MaskedLMOutput,
    masked_lm_head,
    masked_lm_head_from_logits,
)
from masktuning.ops.threshold_masking import sample_masks_threshold
from masktuning.ops.token_substitution import SubstitutedTokens, substitute_tokens

__all__ = [
    "DualLoss",
    "MaskedLMOutput",
    "MaskedTokens",
    "SubstitutedTokens",
    "dual_cross_entropy",
    "masked_lm_head",
    "masked_lm_head_from_logits",
    "sample_masks",
    "sample_masks_threshold",
    "substitute_tokens",
]
