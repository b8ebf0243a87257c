"""Mask-tuning's equations (arXiv 2307.10457, section II), on any encoder and masked-LM head.

Shapes: B examples, L tokens, M masked positions, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masktuning.ops import MaskedLMOutput, sample_masks


@dataclass(frozen=True)
class Perturbation:
    """How masked tokens are shown and filled in."""

    mask_token_id: int
    replacement_ids: Tensor | None = None
    """[N] int64; None shows the mask everywhere, else BERT's 80/10/10."""
    banned_ids: Tensor | None = None
    """[N] int64, ids that are never put in."""
    tokenizer_size: int | None = None
    """Ids at or above this one, which the tokenizer does not have, are never put in either."""
    top_k: int = 1
    """1 puts in the argmax, more draws among the k most likely."""
    temperature: float = 1.0
    include_original: bool = False
    """Classify the original text beside the perturbed one, with equal weight."""

    def to(self, device: torch.device) -> Perturbation:
        """The same with its tensors on `device`."""
        moved: Any = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class MaskBatch(NamedTuple):
    """What the collator adds to a batch; see collator.MaskTuningCollator."""

    maskable: Tensor
    """[B, L] bool."""
    example_ids: Tensor
    """[B] int64."""
    offsets: Tensor
    """[B + 1] int64."""
    num_masked: int


def masked_lm_pass(
    encode: Callable[[Tensor], Tensor],
    head: Callable[..., MaskedLMOutput],
    input_ids: Tensor,
    masks: MaskBatch,
    rng: Tensor,
    perturbation: Perturbation,
) -> tuple[MaskedLMOutput, Tensor]:
    """Pass A: masks the batch, scores the masked tokens, and fills in the predictions.

    Returns the head's output, whose input_ids [B, L] are the perturbed examples, and the targets
    [M]. No gradient flows through the predictions.

    Equivalent to::

        hidden_BLH = encode(input_ids.masked_fill(chosen_BL, mask_token_id))
        logits_MV = head(hidden_BLH[chosen_BL])
        L_MLM, x_hat = F.cross_entropy(logits_MV, input_ids[chosen_BL]), logits_MV.argmax(1)
    """
    masked = sample_masks(
        input_ids,
        masks.maskable,
        masks.example_ids,
        masks.offsets,
        rng,
        masks.num_masked,
        perturbation.mask_token_id,
        perturbation.replacement_ids,
    )
    hidden_BLH = encode(masked.input_ids)
    # Gathered before the head: M rows of V logits instead of B * L. Surplus rows read row 0.
    hidden_MH = hidden_BLH.flatten(0, 1).index_select(0, masked.positions.clamp(min=0))
    output = head(
        hidden_MH,
        input_ids,
        masked.positions,
        masked.targets,
        masks.example_ids,
        rng,
        perturbation.banned_ids,
        perturbation.top_k,
        perturbation.temperature,
        perturbation.tokenizer_size,
    )
    return output, masked.targets


def perturbation_from(
    tokenizer: Any, vocab_size: int, corruption: str = "mask", **settings: Any
) -> Perturbation:
    """The perturbation for a tokenizer: its mask, and what may never be put in.

    Every special id but [UNK] is banned (a predicted </s> would break BART's pooling, a predicted
    <pad> shift RoBERTa's positions), and so are embedding rows past the tokenizer's vocabulary.
    `corruption` is "mask" or "80-10-10"; random tokens are never special.
    """
    special = set(tokenizer.all_special_ids)
    banned = sorted(i for i in special - {tokenizer.unk_token_id} if i < vocab_size)
    plain = [i for i in range(min(len(tokenizer), vocab_size)) if i not in special]
    return Perturbation(
        mask_token_id=tokenizer.mask_token_id,
        replacement_ids=torch.tensor(plain) if corruption == "80-10-10" else None,
        banned_ids=torch.tensor(banned, dtype=torch.int64),
        tokenizer_size=len(tokenizer),
        **settings,
    )
