"""Chooses the tokens to mask; the draws are the counter contract of ops/random.py.

Shapes: B examples, L tokens, M masked positions, N replacement ids.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from masktuning.ops import backend, cpp
from masktuning.ops.checks import check_tensor, runs_directly
from masktuning.ops.random import STREAM_CORRUPTION, STREAM_MASKING, draw_words

IGNORE_INDEX = -100
_SHOW_MASK_BELOW = round(0.8 * 2**32)
_SHOW_RANDOM_BELOW = round(0.9 * 2**32)


class MaskedTokens(NamedTuple):
    """What `sample_masks` returns."""

    input_ids: Tensor
    """[B, L] int64, masked."""
    positions: Tensor
    """[M] int64, b * L + t ascending; -1 for surplus rows."""
    targets: Tensor
    """[M] int64, the original tokens; -100 for surplus rows."""


def sample_masks(
    input_ids: Tensor,
    maskable: Tensor,
    example_ids: Tensor,
    offsets: Tensor,
    rng: Tensor,
    num_masked: int,
    mask_token_id: int,
    replacement_ids: Tensor | None = None,
) -> MaskedTokens:
    """Masks, in row i, the offsets[i+1] - offsets[i] maskable tokens with the smallest (draw, t).

    Mask-tuning (arXiv 2307.10457) section II, phase 1: a fixed share of each example's tokens,
    uniformly at random, drawn anew at each visit.

    Args:
        input_ids: [B, L] int64.
        maskable: [B, L] bool, false for padding and special tokens.
        example_ids: [B] int64, the rows of the training set.
        offsets: [B + 1] int64, exclusive sum of the counts of the rows.
        rng: [2] int64, seed and visit.
        num_masked: M; may exceed offsets[B], then the surplus rows have position -1, target -100.
        mask_token_id: what a masked token shows.
        replacement_ids: [N] int64. If given, 80 % of the masked tokens show the mask, 10 % one of
            these ids and 10 % themselves (BERT's corruption).

    Returns:
        MaskedTokens(input_ids [B, L], positions [M], targets [M]), all int64.

    Raises:
        ValueError: on a wrong dtype, shape or device, naming the argument, and on the CPU also
            if offsets ask for more tokens than a row or num_masked has.

    Equivalent to::

        chosen_BL = row_rank(draws_BL.masked_fill(~maskable, inf)) < counts_B[:, None]
        positions_M = chosen_BL.flatten().nonzero().squeeze(1)
        return input_ids.masked_fill(chosen_BL, mask_token_id), positions_M, input_ids[chosen_BL]
    """
    _check(input_ids, example_ids, rng, replacement_ids)
    check_tensor("maskable", maskable, torch.bool, input_ids.shape, input_ids.device)
    check_tensor("offsets", offsets, torch.int64, (input_ids.shape[0] + 1,), input_ids.device)
    direct = runs_directly(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    call = _sample_masks if direct else torch.ops.masktuning.sample_masks
    return MaskedTokens(
        *call(
            input_ids,
            maskable,
            example_ids,
            offsets,
            rng,
            num_masked,
            mask_token_id,
            replacement_ids,
        )
    )


def sample_masks_threshold(
    input_ids: Tensor,
    thresholds: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    mask_token_id: int,
    replacement_ids: Tensor | None = None,
) -> MaskedTokens:
    """Masks every token whose draw is below its threshold: Bernoulli with a rate of its own.

    Args:
        input_ids, example_ids, rng, mask_token_id, replacement_ids: as in `sample_masks`.
        thresholds: [B, L] int64, round(q * 2^32) for a token masked with probability q; 0 for
            padding and special tokens.

    M is known only afterwards, so on a GPU this waits for the device once.

    Raises:
        ValueError: on a wrong dtype, shape or device, naming the argument.

    Equivalent to::

        chosen_BL = draws_BL < thresholds
        positions_M = chosen_BL.flatten().nonzero().squeeze(1)
        return input_ids.masked_fill(chosen_BL, mask_token_id), positions_M, input_ids[chosen_BL]
    """
    _check(input_ids, example_ids, rng, replacement_ids)
    check_tensor("thresholds", thresholds, torch.int64, input_ids.shape, input_ids.device)
    if backend.choose("sample_masks_threshold", input_ids.device) == "cpp":
        arguments = (input_ids, thresholds, example_ids, rng)
        return MaskedTokens(*cpp.sample_masks_threshold(*arguments, mask_token_id, replacement_ids))
    chosen_BL = _token_words(rng, example_ids, input_ids, STREAM_MASKING)[0] < thresholds
    positions_M = chosen_BL.flatten().nonzero().squeeze(1)
    shown_BL = _shown_tokens(input_ids, example_ids, rng, mask_token_id, replacement_ids)
    return MaskedTokens(
        torch.where(chosen_BL, shown_BL, input_ids), positions_M, input_ids.flatten()[positions_M]
    )


def sample_masks_reference(
    input_ids: Tensor,
    maskable: Tensor,
    example_ids: Tensor,
    offsets: Tensor,
    rng: Tensor,
    num_masked: int,
    mask_token_id: int,
    replacement_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_masks` in plain PyTorch, without a host synchronisation on a GPU."""
    B, L = input_ids.shape
    counts_B = offsets.diff()
    if input_ids.device.type == "cpu":  # free here, and the kernels write where offsets say
        _check_offsets(maskable, offsets, counts_B, num_masked)
    t_L = torch.arange(L, device=input_ids.device)
    draws_BL = _token_words(rng, example_ids, input_ids, STREAM_MASKING)[0]
    # (draw, t) in one int64, so that ties go to the smaller t; unmaskable tokens come last.
    keys_BL = torch.where(maskable, (draws_BL << 31) + t_L, torch.iinfo(torch.int64).max)
    ranks_BL = keys_BL.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    chosen_BL = (ranks_BL < counts_B[:, None]) & maskable

    # A data-dependent nonzero() would wait for the device; scatter into M slots and one to spare.
    flat_chosen = chosen_BL.flatten()
    slots = torch.where(flat_chosen, flat_chosen.cumsum(0) - 1, num_masked).clamp(max=num_masked)
    flat = torch.arange(B * L, device=input_ids.device)
    positions_M = flat.new_full((num_masked + 1,), -1).scatter(0, slots, flat)[:num_masked]
    # One token to spare at the front keeps the gather in bounds for -1, and for an empty batch.
    tokens = torch.cat([input_ids.new_full((1,), IGNORE_INDEX), input_ids.flatten()])
    targets_M = tokens[positions_M + 1]
    shown_BL = _shown_tokens(input_ids, example_ids, rng, mask_token_id, replacement_ids)
    return torch.where(chosen_BL, shown_BL, input_ids), positions_M, targets_M


def _token_words(
    rng: Tensor, example_ids: Tensor, input_ids: Tensor, stream: int
) -> tuple[Tensor, ...]:
    t_L = torch.arange(input_ids.shape[1], device=input_ids.device)
    return draw_words(rng, t_L, example_ids[:, None], stream)


def _shown_tokens(
    input_ids: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    mask_token_id: int,
    replacement_ids: Tensor | None,
) -> Tensor:
    """[B, L], what each token would show if it were masked."""
    mask_BL = torch.full_like(input_ids, mask_token_id)
    if replacement_ids is None:
        return mask_BL
    kind_BL, which_BL, _, _ = _token_words(rng, example_ids, input_ids, STREAM_CORRUPTION)
    random_BL = replacement_ids[(which_BL * replacement_ids.shape[0]) >> 32]
    kept_BL = torch.where(kind_BL < _SHOW_RANDOM_BELOW, random_BL, input_ids)
    return torch.where(kind_BL < _SHOW_MASK_BELOW, mask_BL, kept_BL)


def _sample_masks(
    input_ids: Tensor,
    maskable: Tensor,
    example_ids: Tensor,
    offsets: Tensor,
    rng: Tensor,
    num_masked: int,
    mask_token_id: int,
    replacement_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (input_ids, maskable, example_ids, offsets, rng)
    kernels = backend.kernels_for("sample_masks", input_ids)
    call = backend.module(kernels).sample_masks if kernels else sample_masks_reference
    return call(*arguments, num_masked, mask_token_id, replacement_ids)


def _check(
    input_ids: Tensor, example_ids: Tensor, rng: Tensor, replacement_ids: Tensor | None
) -> None:
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [B, L], not {list(input_ids.shape)}")
    device = input_ids.device
    check_tensor("input_ids", input_ids, torch.int64, input_ids.shape, device)
    check_tensor("example_ids", example_ids, torch.int64, (input_ids.shape[0],), device)
    check_tensor("rng", rng, torch.int64, (2,), device)
    if replacement_ids is not None:
        if replacement_ids.numel() == 0:
            raise ValueError("replacement_ids is empty: pass None to show the mask everywhere")
        check_tensor("replacement_ids", replacement_ids, torch.int64, (-1,), device)


def _check_offsets(maskable: Tensor, offsets: Tensor, counts_B: Tensor, num_masked: int) -> None:
    if int(offsets[0]) != 0 or int(offsets[-1]) > num_masked:
        raise ValueError(
            f"offsets must start at 0 and end at or below num_masked ({num_masked}), "
            f"but end at {int(offsets[-1])}"
        )
    available_B = maskable.sum(1)
    bad = ((counts_B < 0) | (counts_B > available_B)).nonzero()
    if bad.numel():
        row = int(bad[0])
        raise ValueError(
            f"offsets ask for {int(counts_B[row])} masked tokens in row {row}, "
            f"which has {int(available_B[row])} maskable ones"
        )


_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "sample_masks(Tensor input_ids, Tensor maskable, Tensor example_ids, Tensor offsets, "
    "Tensor rng, SymInt num_masked, SymInt mask_token_id, Tensor? replacement_ids) "
    "-> (Tensor, Tensor, Tensor)"
)
_LIBRARY.impl("sample_masks", _sample_masks, "CompositeExplicitAutograd")


@torch.library.register_fake("masktuning::sample_masks", lib=_LIBRARY)
def _sample_masks_fake(
    input_ids: Tensor,
    maskable: Tensor,
    example_ids: Tensor,
    offsets: Tensor,
    rng: Tensor,
    num_masked: int,
    mask_token_id: int,
    replacement_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        input_ids.new_empty(input_ids.shape),
        input_ids.new_empty(num_masked),
        input_ids.new_empty(num_masked),
    )
