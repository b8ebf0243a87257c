"""From hidden states at the masked positions to losses and predicted tokens.

The kernels' part, with its gradient, is in masked_lm_head_fused.py.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from masktuning.ops.backends import select
from masktuning.ops.checks import FLOATS, check_tensor
from masktuning.ops.masked_lm_head_fused import HeadInputs, fused_masked_lm_head
from masktuning.ops.masked_rows import (
    MaskedRows,
    TokenChoice,
    check_choice,
    check_rows,
    check_values,
)
from masktuning.ops.token_substitution import check_substitution, row_losses, substitute

LOGITS_BYTES = 256 * 2**20
"""On the CPU, logits of more bytes than this are computed for a part of the rows at a time."""
LOGITS_SHARE = 64
"""On a GPU the bound is this part of its memory: 256 MiB of 16 GiB, 2.2 GiB of 141 GB."""


class MaskedLMOutput(NamedTuple):
    """What `masked_lm_head` returns."""

    losses: Tensor
    """[M] float32 (float64 for float64 operands), differentiable."""
    tokens: Tensor
    """[M] int64, the substituted token ids; -1 for surplus rows."""
    input_ids: Tensor
    """[B, L] int64 with the tokens in place."""


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
    tokenizer_size: int | None = None,
) -> MaskedLMOutput:
    """The decoder of a masked LM on the masked rows only: losses, predictions, perturbed text.

    Mask-tuning (arXiv 2307.10457) section II: L_MLM of Eq. (1) is the mean of the losses, and the
    returned input_ids are the perturbed example of phase 2.

    Differentiable in hidden, weight and bias. Under autocast these three are cast to its dtype.
    Logits of more than LOGITS_BYTES (on a GPU: of more than 1 / LOGITS_SHARE of its memory) are
    computed in chunks of rows, and computed again for the gradient.

    Args:
        hidden: [M, H] float, the transformed hidden states at the masked positions.
        weight: [V, H] float.
        bias: [V] float, or None.
        input_ids, positions, targets, example_ids, rng, banned_ids, top_k, temperature,
            tokenizer_size: as in `substitute_tokens`.

    Returns:
        MaskedLMOutput(losses [M], tokens [M], input_ids [B, L]).

    Raises:
        ValueError: on a wrong dtype, shape or device, or a value out of range, naming the argument.

    Equivalent to::

        logits_MV = F.linear(hidden_MH, weight_VH, bias_V).float()
        losses_M = F.cross_entropy(logits_MV, targets_M, reduction="none")
        return losses_M, logits_MV.argmax(1), ...                            # top_k = 1
    """
    _check_shapes(hidden, weight, bias)
    if torch.is_autocast_enabled(hidden.device.type):
        # Cast here, not inside the kernel, so that autograd casts the gradients back.
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    check_tensor("hidden", hidden, FLOATS, (-1, -1), hidden.device)
    for name, operand in (("weight", weight), ("bias", bias)):
        if operand is not None:
            check_tensor(name, operand, hidden.dtype, operand.shape, hidden.device)
    rows = MaskedRows(input_ids, positions, targets, example_ids, rng)
    choice = TokenChoice(banned_ids, top_k, temperature, tokenizer_size)
    kernels = select.kernels_for("masked_lm_head", hidden)
    if not kernels:
        return masked_lm_head_ref(F.linear(hidden, weight, bias), rows, choice)
    check_rows(rows, hidden.shape[0], hidden.device)
    check_choice(choice, hidden.device)
    check_values(kernels, rows, banned_ids, weight.shape[0])
    operands = (hidden, weight) if bias is None else (hidden, weight, bias)
    train = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
    inputs = HeadInputs(hidden, weight, bias, rows, choice, train, kernels)
    chunk = _rows_per_chunk(hidden, weight.shape[0])
    if chunk < hidden.shape[0]:
        return _in_chunks(chunk, inputs)
    return MaskedLMOutput(*fused_masked_lm_head(*inputs.flat()))


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
    tokenizer_size: int | None = None,
) -> MaskedLMOutput:
    """`masked_lm_head` for a model family whose decoder is not a plain linear layer.

    Differentiable in logits.

    Args:
        logits: [M, V] float, from the family's own head.
        input_ids, positions, targets, example_ids, rng, banned_ids, top_k, temperature,
            tokenizer_size: as in `substitute_tokens`.

    Returns:
        MaskedLMOutput(losses [M], tokens [M], input_ids [B, L]).

    Raises:
        ValueError: as `substitute_tokens`.

    Equivalent to::

        losses_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        tokens_M = logits_MV.argmax(1)                                       # top_k = 1
        return losses_M, tokens_M, input_ids.flatten().scatter(0, positions_M, tokens_M)
    """
    rows = MaskedRows(input_ids, positions, targets, example_ids, rng)
    return masked_lm_head_ref(
        logits, rows, TokenChoice(banned_ids, top_k, temperature, tokenizer_size)
    )


def masked_lm_head_ref(logits: Tensor, rows: MaskedRows, choice: TokenChoice) -> MaskedLMOutput:
    """`masked_lm_head` from its logits [M, V] on, in plain PyTorch; the arguments are checked."""
    check_substitution(logits, rows, choice)
    check_values("", rows, choice.banned_ids, logits.shape[1])
    # exp, log and sum would each look autocast up, to run in the same float32.
    with torch.autocast(logits.device.type, enabled=False):
        losses_M, _ = row_losses(logits, rows.targets)
        with torch.no_grad():
            return MaskedLMOutput(losses_M, *substitute(logits, rows, choice))


def _check_shapes(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden must be [M, H] and weight [V, H], not {list(hidden.shape)} "
            f"and {list(weight.shape)}"
        )
    if weight.shape[0] == 0:
        raise ValueError("weight must be [V, H] with V > 0")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [V] = {[weight.shape[0]]}, not {list(bias.shape)}")


def _rows_per_chunk(hidden: Tensor, V: int) -> int:
    """M, or the size of the fewest chunks that keep to the bound, all of nearly equal size."""
    M = hidden.shape[0]
    bound = LOGITS_BYTES
    if hidden.device.type == "cuda":
        bound = torch.cuda.get_device_properties(hidden.device).total_memory // LOGITS_SHARE
    most = max(1, bound // (V * hidden.element_size()))
    return M if most >= M else -(-M // -(-M // most))


def _in_chunks(chunk: int, inputs: HeadInputs) -> MaskedLMOutput:
    """The head on `chunk` rows at a time; their logits are computed again in the backward pass."""
    hidden, rows = inputs.hidden, inputs.rows
    substituted_BL = rows.input_ids
    parts = []
    for start in range(0, hidden.shape[0], chunk):
        part = slice(start, start + chunk)
        of_part = rows._replace(
            input_ids=substituted_BL,
            positions=rows.positions[part],
            targets=rows.targets[part],
        )
        losses, tokens, substituted_BL = checkpoint(
            fused_masked_lm_head,
            *inputs._replace(hidden=hidden[part], rows=of_part).flat(),
            use_reentrant=False,
            preserve_rng_state=False,  # every random number is drawn from a counter
        )
        parts.append((losses, tokens))
    losses_M, tokens_M = (torch.cat(column) for column in zip(*parts, strict=True))
    return MaskedLMOutput(losses_M, tokens_M, substituted_BL)
