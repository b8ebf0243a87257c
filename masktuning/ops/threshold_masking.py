"""Masks each token with a probability of its own, given as a threshold for its random number.

Shapes: B examples, L tokens, M masked positions, N replacement ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masktuning.ops.backends import select
from masktuning.ops.backends.extension import address, contiguous, length, module
from masktuning.ops.checks import check_tensor
from masktuning.ops.mask_sampling import (
    MaskedTokens,
    MaskingInputs,
    check_masking,
    empty_outputs,
    shown_tokens,
    token_words,
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

    M is known only afterwards, so on a GPU this waits for the device once. There is no kernel for
    GPUs; the PyTorch reference runs there.

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
    kernels = select.kernels_for("sample_masks_threshold", input_ids)
    call = KERNELS[kernels] if kernels else sample_masks_threshold_ref
    return call(inputs, thresholds)


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


KERNELS = select.register("sample_masks_threshold", cpu={"cpp": _cpp})
