"""From hidden states at the masked positions to losses and predicted tokens.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops.token_substitution import check_substitution, fill_in, row_losses


class MaskedLMOutput(NamedTuple):
    """What `masked_lm_head` returns."""

    losses: Tensor
    """[M] float32 (float64 for float64 operands), differentiable."""
    tokens: Tensor
    """[M] int64, what was put in; -1 for surplus rows."""
    input_ids: Tensor
    """[B, L] int64 with the tokens in place."""
    lse: Tensor
    """[M], log-sum-exp of each row of the logits."""


def masked_lm_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None = None,
    top_k: int = 1,
    temperature: float = 1.0,
) -> MaskedLMOutput:
    """The decoder of a masked LM on the masked rows only: losses, predictions, perturbed text.

    Mask-tuning (arXiv 2307.10457) section II: L_MLM of Eq. (1) is the mean of the losses, and the
    returned input_ids are the perturbed example of phase 2.

    Args:
        hidden: [M, H] float, the transformed hidden states at the masked positions.
        weight: [V, H] float.
        bias: [V] float, or None.
        input_ids, positions, targets, example_ids, rng, banned_ids, top_k, temperature: as in
            `substitute_tokens`.

    Differentiable in hidden, weight and bias. Under autocast both operands are cast.

    Raises:
        ValueError: on a wrong dtype, shape or device, or a value out of range, naming the argument.

    Equivalent to::

        logits_MV = F.linear(hidden_MH, weight_VH, bias_V).float()
        losses_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
        return losses_M, logits_MV.argmax(1), ...                            # top_k = 1
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [M, H] and weight [V, H], not {list(hidden.shape)} "
            f"and {list(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V] = {[weight.shape[0]]}, not {list(bias.shape)}")
    return masked_lm_head_from_logits(
        F.linear(hidden, weight, bias),
        input_ids,
        positions,
        targets,
        example_ids,
        rng,
        banned_ids,
        top_k,
        temperature,
    )


def masked_lm_head_from_logits(
    logits: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None = None,
    top_k: int = 1,
    temperature: float = 1.0,
) -> MaskedLMOutput:
    """`masked_lm_head` for a family whose decoder is not a plain linear layer.

    Args:
        logits: [M, V] float from the family's own head, differentiable.
        The others are those of `substitute_tokens`.

    Raises:
        ValueError: as `substitute_tokens`.

    Equivalent to::

        losses_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        tokens_M = logits_MV.argmax(1)                                       # top_k = 1
        return losses_M, tokens_M, input_ids.flatten().scatter(0, positions_M, tokens_M), lse_M
    """
    check_substitution(
        logits, input_ids, positions, targets, example_ids, rng, banned_ids, top_k, temperature
    )
    # Autocast would run the sums in the same float32, but exp, log and sum ask it each time.
    with torch.autocast(logits.device.type, enabled=False):
        losses_M, lse_M = row_losses(logits, targets)
        with torch.no_grad():
            tokens_M, filled_BL = fill_in(
                logits, input_ids, positions, example_ids, rng, banned_ids, top_k, temperature
            )
    return MaskedLMOutput(losses_M, tokens_M, filled_BL, lse_M.detach())
