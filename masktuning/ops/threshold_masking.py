"""Masks each token with a probability of its own, given as a threshold for its random number.

Shapes: B examples, L tokens, M masked positions, N replacement ids.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from masktuning.ops.backends import launch, select, triton
from masktuning.ops.backends.extension import address, contiguous, length, module
from masktuning.ops.checks import check_tensor, runs_directly
from masktuning.ops.mask_sampling import (
    CUDA,
    MaskedTokens,
    MaskingInputs,
    check_masking,
    empty_outputs,
    shown_tokens,
    token_words,
    triton_block,
)
from masktuning.ops.philox import STREAM_MASKING


def sample_masks_threshold(
    input_ids: Tensor,
    thresholds: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    mask_token_id: int,
    replacement_ids: Tensor | None = None,
) -> MaskedTokens:
    """Masks every token whose draw is below its threshold: each token has a probability of its own.

    M is known only afterwards, so on a GPU this waits for the device once.

    Args:
        input_ids, example_ids, rng, mask_token_id, replacement_ids: as in `sample_masks`.
        thresholds: [B, L] int64, round(q * 2^32) for a token that is masked with probability q; 0
            for padding and special tokens.

    Returns:
        MaskedTokens(input_ids [B, L], positions [M], targets [M]), all int64.

    Raises:
        ValueError: on a wrong dtype, shape or device, naming the argument.

    Equivalent to::

        chosen_BL = draws_BL < thresholds
        positions_M = chosen_BL.flatten().nonzero().squeeze(1)
        return input_ids.masked_fill(chosen_BL, mask_token_id), positions_M, input_ids[chosen_BL]
    """
    inputs = MaskingInputs(input_ids, example_ids, rng, mask_token_id, replacement_ids)
    check_masking(inputs)
    check_tensor("thresholds", thresholds, torch.int64, input_ids.shape, input_ids.device)
    if runs_directly(input_ids, thresholds, example_ids, rng, replacement_ids):
        return _sample(inputs, thresholds)
    flat = (input_ids, thresholds, example_ids, rng, mask_token_id, replacement_ids)
    return MaskedTokens(*torch.ops.masktuning.sample_masks_threshold(*flat))


def sample_masks_threshold_ref(inputs: MaskingInputs, thresholds: Tensor) -> MaskedTokens:
    """`sample_masks_threshold` in plain PyTorch."""
    chosen_BL = token_words(inputs, STREAM_MASKING)[0] < thresholds
    positions_M = chosen_BL.flatten().nonzero().squeeze(1)
    masked_BL = torch.where(chosen_BL, shown_tokens(inputs), inputs.input_ids)
    return MaskedTokens(masked_BL, positions_M, inputs.input_ids.flatten()[positions_M])


def _cpp(inputs: MaskingInputs, thresholds: Tensor) -> MaskedTokens:
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    outputs = empty_outputs(input_ids, input_ids.numel())
    held = contiguous(input_ids, thresholds, example_ids, rng, replacement_ids)
    M = module().sample_masks_threshold(
        *map(address, held),
        length(replacement_ids),
        *input_ids.shape,
        mask_token_id,
        *map(address, outputs),
        torch.get_num_threads(),
    )
    return MaskedTokens(outputs[0], outputs[1][:M].clone(), outputs[2][:M].clone())


def _cuda(inputs: MaskingInputs, thresholds: Tensor) -> MaskedTokens:
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    B, L = input_ids.shape
    outputs = empty_outputs(input_ids, B * L)
    counts, offsets = input_ids.new_zeros(B + 1), input_ids.new_empty(B + 1)
    held = contiguous(input_ids, None, example_ids, offsets, rng, replacement_ids)
    held_thresholds = thresholds.contiguous()
    ends = (address(held_thresholds), address(counts[1:]))
    addresses = (*map(address, held), *map(address, outputs), *ends)
    arguments = launch.pack(CUDA, *addresses, B, L, length(replacement_ids), B * L, mask_token_id)
    start = partial(launch.start, input_ids.device)
    start("count_below_threshold", (max(B, 1), 1), 256, arguments)
    torch.cumsum(counts, 0, out=offsets)
    start("sample_masks_threshold", (max(B, 1), 1), 256, arguments)
    return _shortened(outputs, offsets)


def _triton(inputs: MaskingInputs, thresholds: Tensor) -> MaskedTokens:
    input_ids = inputs.input_ids
    B, L = input_ids.shape
    outputs = empty_outputs(input_ids, B * L)
    counts, offsets = input_ids.new_zeros(B + 1), input_ids.new_empty(B + 1)
    count, write = triton_launches(inputs, thresholds, counts[1:], offsets, outputs)
    triton.start(count, input_ids.device)
    torch.cumsum(counts, 0, out=offsets)
    triton.start(write, input_ids.device)
    return _shortened(outputs, offsets)


def triton_launches(
    inputs: MaskingInputs,
    thresholds: Tensor,
    counts: Tensor,
    offsets: Tensor,
    outputs: MaskedTokens,
) -> tuple[triton.Launch, triton.Launch]:
    """How Triton's two kernels are started: the one that counts, and the one that writes."""
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    B, L = input_ids.shape
    file, options = triton.kernels("mask_sampling"), triton_block(L)
    ids, *drawn, replacements = contiguous(input_ids, thresholds, example_ids, rng, replacement_ids)
    programs = max(B, 1)
    counted = (*drawn, counts, B, L)
    read = (ids, *drawn[:2], offsets, drawn[2], replacements)
    written = (*read, *outputs, B, L, length(replacements), B * L, mask_token_id)
    corrupt = {**options, "CORRUPT": replacements is not None}
    return (
        triton.Launch(file.count_below_threshold, programs, counted, options),
        triton.Launch(file.sample_masks_threshold, programs, written, corrupt),
    )


def _shortened(outputs: MaskedTokens, offsets: Tensor) -> MaskedTokens:
    """The outputs without their unused slots. This waits for the device."""
    M = int(offsets[-1])
    return MaskedTokens(outputs[0], outputs[1][:M].clone(), outputs[2][:M].clone())


KERNELS = select.register(
    "sample_masks_threshold", cpu={"cpp": _cpp}, cuda={"cuda": _cuda, "triton": _triton}
)


def _sample(inputs: MaskingInputs, thresholds: Tensor) -> MaskedTokens:
    kernels = select.kernels_for("sample_masks_threshold", inputs.input_ids)
    call = KERNELS[kernels] if kernels else sample_masks_threshold_ref
    return call(inputs, thresholds)


_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "sample_masks_threshold(Tensor input_ids, Tensor thresholds, Tensor example_ids, Tensor rng, "
    "SymInt mask_token_id, Tensor? replacement_ids) -> (Tensor, Tensor, Tensor)"
)


def _registered(*flat: Any) -> MaskedTokens:
    input_ids, thresholds, *rest = flat
    return _sample(MaskingInputs(input_ids, *rest), thresholds)


_LIBRARY.impl("sample_masks_threshold", _registered, "CompositeExplicitAutograd")


@torch.library.register_fake("masktuning::sample_masks_threshold", lib=_LIBRARY)
def _fake(*flat: Any) -> MaskedTokens:
    M: Any = torch.library.get_ctx().new_dynamic_size()
    return empty_outputs(flat[0], M)
