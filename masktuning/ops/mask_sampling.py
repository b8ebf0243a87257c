"""Chooses the tokens to mask, with the random numbers of the counter contract in ops/philox.py.

Shapes: B examples, L tokens, M masked positions, N replacement ids.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from masktuning.ops.backends import launch, select, triton
from masktuning.ops.backends.extension import address, contiguous, length, module
from masktuning.ops.checks import IGNORE_INDEX, check_dtype, check_tensor, runs_directly
from masktuning.ops.philox import STREAM_CORRUPTION, STREAM_MASKING, draw_words

_SHOW_MASK_BELOW = round(0.8 * 2**32)
_SHOW_RANDOM_BELOW = round(0.9 * 2**32)
CUDA = launch.declare(
    "mask_sampling", "11P5q", ["sample_masks", "count_below_threshold", "sample_masks_threshold"]
)


class MaskedTokens(NamedTuple):
    """What `sample_masks` returns."""

    input_ids: Tensor
    """[B, L] int64, masked."""
    positions: Tensor
    """[M] int64, b * L + t ascending; -1 for surplus rows."""
    targets: Tensor
    """[M] int64, the original tokens; -100 for surplus rows."""


class MaskingInputs(NamedTuple):
    """What both policies, `exact` and `threshold`, are given."""

    input_ids: Tensor
    example_ids: Tensor
    rng: Tensor
    mask_token_id: int
    replacement_ids: Tensor | None


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
    """Masks a given number of tokens per row: those with the smallest (draw, position).

    Mask-tuning (arXiv 2307.10457) section II, phase 1: a fixed share of the tokens of each example,
    chosen uniformly at random and anew in each epoch.

    Args:
        input_ids: [B, L] int64.
        maskable: [B, L] bool, false for padding and special tokens.
        example_ids: [B] int64, the rows of the training set.
        offsets: [B + 1] int64, the exclusive sum of the numbers of tokens to mask per row.
        rng: [2] int64, seed and epoch.
        num_masked: M. It may exceed offsets[B]; the surplus rows have position -1, target -100.
        mask_token_id: the id that replaces a masked token.
        replacement_ids: [N] int64. If given, 80 % of the masked tokens are replaced by the mask,
            10 % by one of these ids, and 10 % keep their own (BERT's corruption).

    Returns:
        MaskedTokens(input_ids [B, L], positions [M], targets [M]), all int64.

    Raises:
        ValueError: on a wrong dtype, shape or device, naming the argument. On the CPU also if the
            offsets ask for more tokens than a row can mask or than num_masked.

    Equivalent to::

        chosen_BL = row_rank(draws_BL.masked_fill(~maskable, inf)) < counts_B[:, None]
        positions_M = chosen_BL.flatten().nonzero().squeeze(1)
        return input_ids.masked_fill(chosen_BL, mask_token_id), positions_M, input_ids[chosen_BL]
    """
    inputs = MaskingInputs(input_ids, example_ids, rng, mask_token_id, replacement_ids)
    check_masking(inputs)
    check_tensor("maskable", maskable, torch.bool, input_ids.shape, input_ids.device)
    check_tensor("offsets", offsets, torch.int64, (input_ids.shape[0] + 1,), input_ids.device)
    if runs_directly(input_ids, maskable, example_ids, offsets, rng, replacement_ids):
        return _sample(inputs, maskable, offsets, num_masked)
    tensors = (input_ids, maskable, example_ids, offsets, rng)
    flat = (*tensors, num_masked, mask_token_id, replacement_ids)
    return MaskedTokens(*torch.ops.masktuning.sample_masks(*flat))


def sample_masks_ref(
    inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, num_masked: int
) -> MaskedTokens:
    """`sample_masks` in plain PyTorch, without waiting for the device on a GPU."""
    input_ids = inputs.input_ids
    B, L = input_ids.shape
    counts_B = offsets.diff()
    if input_ids.device.type == "cpu":  # free here, and the kernels write where the offsets say
        _check_offsets(maskable, offsets, counts_B, num_masked)
    t_L = torch.arange(L, device=input_ids.device)
    draws_BL = token_words(inputs, STREAM_MASKING)[0]
    # (draw, t) in one int64, so that ties go to the smaller t; unmaskable tokens come last.
    keys_BL = torch.where(maskable, (draws_BL << 31) + t_L, torch.iinfo(torch.int64).max)
    ranks_BL = keys_BL.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    chosen_BL = (ranks_BL < counts_B[:, None]) & maskable

    # nonzero() would wait for the device to learn how many there are. This scatters into M slots
    # and one more, which takes whatever is not chosen.
    flat_chosen = chosen_BL.flatten()
    slots = torch.where(flat_chosen, flat_chosen.cumsum(0) - 1, num_masked).clamp(max=num_masked)
    flat = torch.arange(B * L, device=input_ids.device)
    positions_M = flat.new_full((num_masked + 1,), -1).scatter(0, slots, flat)[:num_masked]
    # One more token at the front keeps the gather in bounds for -1, and for an empty batch.
    tokens = torch.cat([input_ids.new_full((1,), IGNORE_INDEX), input_ids.flatten()])
    targets_M = tokens[positions_M + 1]
    masked_BL = torch.where(chosen_BL, shown_tokens(inputs), input_ids)
    return MaskedTokens(masked_BL, positions_M, targets_M)


def token_words(inputs: MaskingInputs, stream: int) -> tuple[Tensor, ...]:
    """The four random words [B, L] of every token."""
    t_L = torch.arange(inputs.input_ids.shape[1], device=inputs.input_ids.device)
    return draw_words(inputs.rng, t_L, inputs.example_ids[:, None], stream)


def shown_tokens(inputs: MaskingInputs) -> Tensor:
    """[B, L], what would replace each token if it were masked."""
    mask_BL = torch.full_like(inputs.input_ids, inputs.mask_token_id)
    replacement_ids = inputs.replacement_ids
    if replacement_ids is None:
        return mask_BL
    kind_BL, which_BL, _, _ = token_words(inputs, STREAM_CORRUPTION)
    random_BL = replacement_ids[(which_BL * replacement_ids.shape[0]) >> 32]
    kept_BL = torch.where(kind_BL < _SHOW_RANDOM_BELOW, random_BL, inputs.input_ids)
    return torch.where(kind_BL < _SHOW_MASK_BELOW, mask_BL, kept_BL)


def check_masking(inputs: MaskingInputs) -> None:
    """Raises ValueError naming the argument whose dtype, shape or device is wrong."""
    input_ids, example_ids, rng, _, replacement_ids = inputs
    if input_ids.dim() != 2:
        raise ValueError(f"input_ids must be [B, L], not {list(input_ids.shape)}")
    device = input_ids.device
    check_dtype("input_ids", input_ids, torch.int64)
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


def empty_outputs(input_ids: Tensor, M: int) -> MaskedTokens:
    """Room for what a kernel writes: the masked ids [B, L], positions [M] and targets [M]."""
    masked_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    return MaskedTokens(masked_BL, input_ids.new_empty(M), input_ids.new_empty(M))


def _cpp(inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, num_masked: int) -> MaskedTokens:
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    outputs = empty_outputs(input_ids, num_masked)
    held = contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    module().sample_masks(
        *map(address, held),
        length(replacement_ids),
        *input_ids.shape,
        num_masked,
        mask_token_id,
        *map(address, outputs),
        torch.get_num_threads(),
    )
    return outputs


def _cuda(
    inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, num_masked: int
) -> MaskedTokens:
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    outputs = empty_outputs(input_ids, num_masked)
    held = contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    B, L = input_ids.shape
    addresses = (*map(address, held), *map(address, outputs), 0, 0)
    sizes = (B, L, length(replacement_ids), num_masked)
    arguments = launch.pack(CUDA, *addresses, *sizes, mask_token_id)
    launch.start(input_ids.device, "sample_masks", (max(B, 1), 1), 256, arguments)
    return outputs


def _triton(
    inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, num_masked: int
) -> MaskedTokens:
    outputs = empty_outputs(inputs.input_ids, num_masked)
    triton.start(triton_launch(inputs, maskable, offsets, outputs), inputs.input_ids.device)
    return outputs


def triton_launch(
    inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, outputs: MaskedTokens
) -> triton.Launch:
    """How Triton's kernel is started; `outputs` are those of `sample_masks`."""
    input_ids, example_ids, rng, mask_token_id, replacement_ids = inputs
    B, L = input_ids.shape
    held = contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    sizes = (B, L, length(replacement_ids), outputs[1].shape[0])
    arguments = (*held, *outputs, *sizes, mask_token_id)
    options = {**triton_block(L), "CORRUPT": replacement_ids is not None}
    # An empty batch still has the surplus slots, which program 0 fills.
    kernel = triton.kernels("mask_sampling").sample_masks
    return triton.Launch(kernel, max(B, 1), arguments, options)


def triton_block(L: int) -> dict[str, Any]:
    """Compile options of Triton's kernels that have one program per row.

    BLOCK has one value for all texts of up to 128 tokens, and one for each doubling of that.
    """
    return {"BLOCK": max(triton.power_of_two(L), 128), "num_warps": 4}


KERNELS = select.register(
    "sample_masks", cpu={"cpp": _cpp}, cuda={"cuda": _cuda, "triton": _triton}
)


def _sample(
    inputs: MaskingInputs, maskable: Tensor, offsets: Tensor, num_masked: int
) -> MaskedTokens:
    kernels = select.kernels_for("sample_masks", inputs.input_ids)
    call = KERNELS[kernels] if kernels else sample_masks_ref
    return call(inputs, maskable, offsets, num_masked)


_LIBRARY = torch.library.Library("masktuning", "FRAGMENT")
_LIBRARY.define(
    "sample_masks(Tensor input_ids, Tensor maskable, Tensor example_ids, Tensor offsets, "
    "Tensor rng, SymInt num_masked, SymInt mask_token_id, Tensor? replacement_ids) "
    "-> (Tensor, Tensor, Tensor)"
)


def _registered(*flat: Any) -> MaskedTokens:
    input_ids, maskable, example_ids, offsets, rng, num_masked, *rest = flat
    inputs = MaskingInputs(input_ids, example_ids, rng, *rest)
    return _sample(inputs, maskable, offsets, num_masked)


_LIBRARY.impl("sample_masks", _registered, "CompositeExplicitAutograd")


@torch.library.register_fake("masktuning::sample_masks", lib=_LIBRARY)
def _fake(*flat: Any) -> MaskedTokens:
    return empty_outputs(flat[0], flat[5])
