"""Substitutes the masked LM's own predictions at the masked positions, reading the logits once.

What each back end does is in token_substitution_kernels.py.

Shapes: B examples, L tokens, M masked positions, N banned ids, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masktuning.ops.backends import select
from masktuning.ops.checks import FLOATS, IGNORE_INDEX, check_dtype, runs_directly
from masktuning.ops.masked_rows import (
    MaskedRows,
    TokenChoice,
    check_choice,
    check_rows,
    check_values,
)
from masktuning.ops.philox import STREAM_SUBSTITUTION, draw_words
from masktuning.ops.token_substitution_kernels import KERNELS
from masktuning.ops.topk_sampling import draw_among, largest


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
    """Substitutes a token predicted by `logits` at each masked position, and scores the original.

    Mask-tuning (arXiv 2307.10457) section II, phase 2. Not differentiable; see
    `masked_lm_head_from_logits` for that.

    Args:
        logits: [M, V] float; rows may be strided.
        input_ids: [B, L] int64, the original tokens.
        positions: [M] int64, b * L + t in ascending order, as `sample_masks` returns them. A
            position of -1, at the end only, marks a surplus row, which writes nothing.
        targets: [M] int64; the loss of a row with target -100 is 0.
        example_ids: [B] int64.
        rng: [2] int64, seed and epoch.
        banned_ids: [N] int64, ids that are never substituted. They stay in the loss.
        top_k: 1 takes the argmax (ties to the lower id), more draws among the k largest logits.
        temperature: divides the logits before the draw.
        tokenizer_size: ids from this one on are never substituted either. Embeddings often have
            more rows than the tokenizer has ids.

    Returns:
        SubstitutedTokens(losses [M], tokens [M], input_ids [B, L], lse [M]). A row with NaN or +inf
        has a NaN loss and keeps its original token.

    Raises:
        ValueError: on a wrong dtype, shape or device, V = 0, top_k outside 1..64, temperature <= 0
            or tokenizer_size < 1, naming the argument. On the CPU also for a target or banned id
            outside the vocabulary, and for positions outside the text or out of order. On a GPU,
            where checking would wait for the device, such a target gives a NaN loss, and a row out
            of order may keep its original token.

    Equivalent to::

        losses_M = F.cross_entropy(logits_MV.float(), targets_M, reduction="none")
        tokens_M = logits_MV.index_fill(1, banned_ids, -inf).argmax(1)       # top_k = 1
        return losses_M, tokens_M, input_ids.flatten().scatter(0, positions_M, tokens_M)
    """
    rows = MaskedRows(input_ids, positions, targets, example_ids, rng)
    choice = TokenChoice(banned_ids, top_k, temperature, tokenizer_size)
    check_substitution(logits, rows, choice)
    kernels = select.kernels_for("substitute_tokens", logits) if runs_directly(logits) else ""
    check_values(kernels, rows, banned_ids, logits.shape[1])
    if kernels:
        unit_MV = logits if logits.stride(1) == 1 else logits.contiguous()
        return SubstitutedTokens(*KERNELS[kernels](unit_MV, None, rows, choice, 0.0))
    return substitute_tokens_ref(logits, rows, choice)


def substitute_tokens_ref(
    logits: Tensor, rows: MaskedRows, choice: TokenChoice
) -> SubstitutedTokens:
    """`substitute_tokens` in plain PyTorch."""
    with torch.no_grad():
        losses_M, lse_M = row_losses(logits, rows.targets)
        return SubstitutedTokens(losses_M, *substitute(logits, rows, choice), lse_M)


def row_losses(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and log-sum-exp of each row, [M] each, differentiable in `logits`.

    The loss is log(sum) - (x_y - max). Subtracting the target's logit from max + log(sum) would
    lose the small difference of two large numbers.
    """
    x_MV = logits if logits.dtype == torch.float64 else logits.float()
    max_M = x_MV.detach().amax(1)
    # A row of -inf has no scale, and shifting it by -inf would turn it into NaN. A row with +inf
    # must become NaN.
    shift_M = max_M.masked_fill(max_M == -torch.inf, 0.0)
    log_sum_M = (x_MV - shift_M[:, None]).exp().sum(1).log()
    ignored_M = targets == IGNORE_INDEX
    x_target_M = x_MV.gather(1, targets.masked_fill(ignored_M, 0)[:, None]).squeeze(1)
    losses_M = log_sum_M - (x_target_M - shift_M)
    return losses_M.masked_fill(ignored_M, 0.0), log_sum_M + shift_M


def substitute(logits: Tensor, rows: MaskedRows, choice: TokenChoice) -> tuple[Tensor, Tensor]:
    """The tokens [M] chosen from `logits`, and the text [B, L] with them in place."""
    input_ids, positions = rows.input_ids, rows.positions
    banned_ids, top_k, temperature, tokenizer_size = choice
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
        example_ids_M = rows.example_ids[flat_M // L]
        draws_M = draw_words(rows.rng, flat_M % L, example_ids_M, STREAM_SUBSTITUTION)[0]
        tokens_M = draw_among(x_MV, min(top_k, x_MV.shape[1]), temperature, draws_M)
    # `best_M` is -inf where every id is banned. A NaN or +inf must be noticed at banned ids too.
    usable_M = best_M.isfinite() & ~logits.detach().isnan().any(1) & (logits.amax(1) < torch.inf)
    # One more element takes what the surplus rows would write.
    padded = torch.cat([input_ids.flatten(), input_ids.new_full((1,), -1)])
    slots_M = torch.where(written_M, flat_M, padded.shape[0] - 1)
    tokens_M = torch.where(usable_M & written_M, tokens_M, padded[slots_M])
    return tokens_M, padded.scatter(0, slots_M, tokens_M)[:-1].view_as(input_ids)


def check_substitution(logits: Tensor, rows: MaskedRows, choice: TokenChoice) -> None:
    """Raises ValueError naming the argument that does not fit; see `substitute_tokens`."""
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must be [M, V] with V > 0, not {list(logits.shape)}")
    check_dtype("logits", logits, FLOATS)
    check_rows(rows, logits.shape[0], logits.device)
    check_choice(choice, logits.device)
