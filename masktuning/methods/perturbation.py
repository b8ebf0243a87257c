"""The perturbation of Mask-tuning (arXiv 2307.10457, section II), on any masked LM.

Shapes: B examples, L tokens, M masked positions, H width, N token ids.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import MaskedLMOutput, MaskedTokens, sample_masks


@dataclass(frozen=True)
class Perturbation:
    """What masked tokens are shown as, and how the tokens that replace them are chosen."""

    mask_token_id: int
    banned_ids: Tensor
    """[N] int64, ids that are never substituted for a token."""
    replacement_ids: Tensor | None = None
    """[N] int64; None shows the mask token everywhere, otherwise BERT's 80/10/10 is used."""
    tokenizer_size: int | None = None
    """Ids at or above this one, which the tokenizer does not have, are never substituted either."""
    top_k: int = 1
    """1 substitutes the most likely token; more than 1 draws among the k most likely ones."""
    temperature: float = 1.0
    """What the logits of that draw are divided by."""

    def __getstate__(self) -> dict[str, Any]:
        """Its tensors leave the GPU where it is pickled, for the processes of a data loader."""
        return vars(self.to(torch.device("cpu")))

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.banned_ids.device

    def to(self, device: torch.device) -> Perturbation:
        """The same perturbation with its tensors on `device`."""
        moved: Any = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


class MaskBatch(NamedTuple):
    """What the masks of a batch are sampled from; see `data.collator.MaskPlan`."""

    maskable: Tensor
    """[B, L] bool."""
    example_ids: Tensor
    """[B] int64."""
    offsets: Tensor
    """[B + 1] int64."""
    num_masked: int
    max_masked: int = 0
    """The largest number of masked tokens of one example, or 0 if it is not known."""


def masks_of(batch: Batch) -> MaskBatch:
    """What the masks of a batch are sampled from, after `MaskTuning.collate`."""
    assert batch.maskable is not None and batch.offsets is not None
    return MaskBatch(
        batch.maskable, batch.example_ids, batch.offsets, batch.num_masked, batch.max_masked
    )


def masked_lm_pass(
    encode: Callable[[MaskedTokens], Tensor],
    head: Callable[..., MaskedLMOutput],
    input_ids: Tensor,
    masks: MaskBatch,
    rng: Tensor,
    perturbation: Perturbation,
) -> tuple[MaskedLMOutput, Tensor]:
    """Pass A: masks the batch, scores the masked tokens, and substitutes the predictions.

    Args:
        encode: from masked texts to the hidden states [M, H] at the masked positions.
        head: `MaskedLMHead`, or a function with its arguments.
        input_ids: [B, L] int64, the original tokens.
        masks: which tokens may be masked and how many.
        rng: [2] int64, seed and epoch.
        perturbation: how tokens are masked and substituted.

    Returns:
        The head's output, whose input_ids [B, L] are the perturbed examples, and the targets [M].
        No gradient flows through the predictions.

    Equivalent to::

        hidden_BLH = encode(input_ids.masked_fill(masked_BL, mask_token_id))
        logits_MV = head(hidden_BLH[masked_BL])
        L_MLM, x_hat = F.cross_entropy(logits_MV, input_ids[masked_BL]), logits_MV.argmax(1)
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
    output = predict_masked(encode, head, input_ids, masked, masks.example_ids, rng, perturbation)
    return output, masked.targets


def nothing_masked(input_ids: Tensor, model: MaskTuningModel) -> tuple[MaskedLMOutput, Tensor]:
    """What `masked_lm_pass` returns for a batch without a masked token, without a forward pass.

    The empty losses give the head's own parameters a gradient of 0, as a forward pass would. An
    optimizer would treat parameters without a gradient differently.

    Args:
        input_ids: [B, L] int64, which are the perturbed examples as well.
        model: what the forward pass would be of.
    """
    assert model.mlm_head is not None
    none_M = input_ids.new_zeros(0)
    shared = {id(p) for p in model.classifier.parameters()}
    own = (p for p in model.mlm_head.parameters() if id(p) not in shared)
    empty = (p.flatten()[:0].float() for p in own)
    losses_M = torch.cat([none_M.float(), *empty])
    return MaskedLMOutput(losses_M, none_M, input_ids), none_M


def predict_masked(
    encode: Callable[[MaskedTokens], Tensor],
    head: Callable[..., MaskedLMOutput],
    input_ids: Tensor,
    masked: MaskedTokens,
    example_ids: Tensor,
    rng: Tensor,
    perturbation: Perturbation,
) -> MaskedLMOutput:
    """The second half of `masked_lm_pass`, for tokens that are masked already."""
    return head(
        encode(masked),
        input_ids,
        masked.positions,
        masked.targets,
        example_ids,
        rng,
        perturbation.banned_ids,
        perturbation.top_k,
        perturbation.temperature,
        perturbation.tokenizer_size,
    )


def perturbation_from(
    tokenizer: Any,
    vocab_size: int,
    corruption: str = "mask",
    top_k: int = 1,
    temperature: float = 1.0,
) -> Perturbation:
    """The perturbation for a tokenizer and a vocabulary of `vocab_size` logits.

    Every special token but [UNK] is banned (a predicted </s> would break BART's pooling, and a
    predicted <pad> would shift RoBERTa's positions), and so are embedding rows beyond the
    tokenizer's vocabulary. `corruption` is "mask" or "80-10-10"; random tokens are never special.
    """
    special = set(tokenizer.all_special_ids)
    banned = sorted(i for i in special - {tokenizer.unk_token_id} if i < vocab_size)
    random = corruption == "80-10-10"
    replacements = torch.tensor(plain_ids(tokenizer, vocab_size)) if random else None
    return Perturbation(
        mask_token_id=tokenizer.mask_token_id,
        replacement_ids=replacements,
        banned_ids=torch.tensor(banned, dtype=torch.int64),
        tokenizer_size=len(tokenizer),
        top_k=top_k,
        temperature=temperature,
    )


def plain_ids(tokenizer: Any, vocab_size: int) -> list[int]:
    """The ids below `vocab_size` that the tokenizer has and that are not special."""
    special = set(tokenizer.all_special_ids)
    return [i for i in range(min(len(tokenizer), vocab_size)) if i not in special]
