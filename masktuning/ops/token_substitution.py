"""Fills masked positions with the masked LM's own predictions; ONE read of the logits.

Shapes: B examples, L tokens, M masked positions, V vocabulary, K candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masktuning.ops import backend
from masktuning.ops.checks import check_tensor, runs_directly
from masktuning.ops.draw import draw_among, largest
from masktuning.ops.mask_sampling import IGNORE_INDEX
from masktuning.ops.random import STREAM_SUBSTITUTION, draw_words

MAX_TOP_K = 64
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class SubstitutedTokens(NamedTuple):
    """What `substitute_tokens` returns."""

    losses: Tensor
    """[M] float32 (float64 for float64 logits), 0 for ignored rows."""
    tokens: Tensor
    """[M] int64, the substituted token ids; -1 for surplus rows."""
    input_ids: Tensor
    """[B, L] int64 with the tokens in place."""
    lse: Tensor
    """[M], log-sum-exp of each row of the logits."""


def substitute_tokens(
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
) -> SubstitutedTokens:
    """Puts a token predicted by `logits` at each masked position and scores the original one.

    Mask-tuning (arXiv 2307.10457) section II, phase 2. Not differentiable; see
    `masked_lm_head_from_logits` for that.

    Args:
        logits: [M, V] float; rows may be strided.
        input_ids: [B, L] int64, the original tokens.
        positions: [M] int64, b * L + t in ascending order, as `sample_masks` gives them; -1, at
            the end only, writes nothing.
        targets: [M] int64; -100 gives loss 0.
        example_ids: [B] int64.
        rng: [2] int64, seed and visit.
        banned_ids: [N] int64, ids that may not be put in (they stay in the loss).
        top_k: 1 takes the argmax (ties to the lower id), more draws among the k largest.
        temperature: divides the logits of the draw.
        tokenizer_size: ids at or above this one are not put in either: embeddings are often padded
            beyond the size of the tokenizer.

    Returns:
        SubstitutedTokens(losses [M], tokens [M], input_ids [B, L], lse [M]).

    A row with NaN or +inf gives a NaN loss and keeps its original token.

    Raises:
        ValueError: on a wrong dtype, shape or device, V = 0, top_k outside 1..64, temperature <= 0
            or tokenizer_size < 1, naming the argument. On the CPU also for a target or banned id
            outside the vocabulary, and for positions outside the text or out of order; on a GPU,
            where checking would wait for the device, such a target gives a NaN loss, and a row out
            of order may keep its original token.

    Equivalent to::

        losses_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        tokens_M = logits_MV.index_fill(1, banned_ids, -inf).argmax(1)       # top_k = 1
        return losses_M, tokens_M, input_ids.flatten().scatter(0, positions_M, tokens_M)
    """
    rows = (input_ids, positions, targets, example_ids, rng, banned_ids)
    choice = (top_k, temperature)
    check_substitution(logits, *rows, *choice, tokenizer_size)
    kernels = backend.kernels_for("substitute_tokens", logits) if runs_directly(logits) else ""
    check_values(kernels, *rows, logits.shape[1])
    if kernels:
        unit_MV = logits if logits.stride(1) == 1 else logits.contiguous()
        losses_M, tokens_M, filled_BL, lse_M = backend.module(kernels).substitute_tokens(
            unit_MV, *rows, *choice, gradient_scale=0.0, tokenizer_size=tokenizer_size
        )
        return SubstitutedTokens(losses_M, tokens_M, filled_BL, lse_M)
    with torch.no_grad():
        losses_M, lse_M = row_losses(logits, targets)
        tokens_M, filled_BL = fill_in(
            logits, input_ids, positions, example_ids, rng, banned_ids, *choice, tokenizer_size
        )
    return SubstitutedTokens(losses_M, tokens_M, filled_BL, lse_M)


def row_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-sum-exp of each row, [M] each, differentiable in `logits`.

    The loss is log(sum) - (x_y - max): subtracting the target from max + log(sum) would lose the
    small difference of two large numbers.
    """
    x_MV = logits if logits.dtype == torch.float64 else logits.float()
    max_M = x_MV.detach().amax(1)
    # A row of -inf has no scale: shifting by -inf would turn it into NaN. One with +inf must.
    shift_M = max_M.masked_fill(max_M == -torch.inf, 0.0)
    log_sum_M = (x_MV - shift_M[:, None]).exp().sum(1).log()
    ignored_M = targets == IGNORE_INDEX
    x_target_M = x_MV.gather(1, targets.masked_fill(ignored_M, 0)[:, None]).squeeze(1)
    losses_M = log_sum_M - (x_target_M - shift_M)
    return losses_M.masked_fill(ignored_M, 0.0), log_sum_M + shift_M


def fill_in(
    logits: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    top_k: int,
    temperature: float,
    tokenizer_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens [M] chosen from `logits`, and `input_ids` [B, L] with them in place."""
    L = input_ids.shape[1]
    x_MV = logits.detach()
    if x_MV.dtype != torch.float64:
        x_MV = x_MV.float()
    if banned_ids is not None:
        x_MV = x_MV.index_fill(1, banned_ids, -torch.inf)
    if tokenizer_size is not None and tokenizer_size < x_MV.shape[1]:
        padding_V = torch.arange(x_MV.shape[1], device=x_MV.device) >= tokenizer_size
        x_MV = x_MV.masked_fill(padding_V, -torch.inf)
    written_M = positions >= 0
    flat_M = positions.clamp(min=0)
    best_M, tokens_M = largest(x_MV)
    if top_k > 1:
        draws_M = draw_words(rng, flat_M % L, example_ids[flat_M // L], STREAM_SUBSTITUTION)[0]
        tokens_M = draw_among(x_MV, min(top_k, x_MV.shape[1]), temperature, draws_M)
    # `best` is -inf where everything is banned; NaN and +inf anywhere in the row must show.
    usable_M = best_M.isfinite() & ~logits.detach().isnan().any(1) & (logits.amax(1) < torch.inf)
    # One element to spare takes what surplus rows would write.
    padded = torch.cat([input_ids.flatten(), input_ids.new_full((1,), -1)])
    slots_M = torch.where(written_M, flat_M, padded.shape[0] - 1)
    tokens_M = torch.where(usable_M & written_M, tokens_M, padded[slots_M])
    return tokens_M, padded.scatter(0, slots_M, tokens_M)[:-1].view_as(input_ids)


def check_substitution(
    logits: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    top_k: int,
    temperature: float,
    tokenizer_size: int | None,
) -> None:
    """Raises ValueError naming the argument that does not fit; see `substitute_tokens`."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [M, V] with V > 0, not {list(logits.shape)}")
    check_tensor("logits", logits, FLOATS, logits.shape, logits.device)
    rows = (input_ids, positions, targets, example_ids, rng, banned_ids)
    check_rows(*rows, logits.shape[0], logits.device)
    check_draw(top_k, temperature, tokenizer_size)


def check_draw(top_k: int, temperature: float, tokenizer_size: int | None) -> None:
    """Raises ValueError naming the argument of the draw that is out of range."""
    if not 1 <= top_k <= MAX_TOP_K:
        raise ValueError(f"top_k must be in 1..{MAX_TOP_K}, not {top_k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    if tokenizer_size is not None and tokenizer_size < 1:
        raise ValueError(f"tokenizer_size must be at least 1, not {tokenizer_size}")


def check_rows(
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    M: int,
    device: torch.device,
) -> None:
    """Raises ValueError naming the argument whose dtype, shape or device does not fit M rows."""
    check_tensor("input_ids", input_ids, torch.int64, (-1, -1), device)
    check_tensor("positions", positions, torch.int64, (M,), device)
    check_tensor("targets", targets, torch.int64, (M,), device)
    check_tensor("example_ids", example_ids, torch.int64, (input_ids.shape[0],), device)
    check_tensor("rng", rng, torch.int64, (2,), device)
    if banned_ids is not None:
        check_tensor("banned_ids", banned_ids, torch.int64, (-1,), device)


def check_values(
    kernels: str,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    V: int,
) -> None:
    """Raises ValueError for a value that does not fit V logits, on the CPU.

    On a GPU this would wait for the device. The C++ kernels check for themselves, with the same
    messages, in a fraction of the time.
    """
    if input_ids.device.type != "cpu" or kernels == "cpp" or not runs_directly(targets):
        return
    outside = (targets != IGNORE_INDEX) & ((targets < 0) | (targets >= V))
    if bool(outside.any()):
        bad = int(targets[outside][0])
        raise ValueError(f"targets holds {bad}, outside the vocabulary of {V}")
    if bool((positions >= input_ids.numel()).any()):
        raise ValueError(f"positions must be below B * L = {input_ids.numel()}")
    before, after = positions[:-1], positions[1:]
    falling = (after >= 0) & ((before < 0) | (after <= before))
    if bool(falling.any() | (positions < -1).any()):
        raise ValueError(
            "positions must ascend, as those of sample_masks do, with -1 at the end only"
        )
    if banned_ids is not None and bool(((banned_ids < 0) | (banned_ids >= V)).any()):
        raise ValueError(f"banned_ids must lie in the vocabulary of {V}")
