"""The kernels of masktuning_C on CPU tensors: outputs, addresses, sizes, threads.

Arguments are checked already; shapes and meanings are those of the op of the same name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masktuning.ops import backend


def sample_masks(
    input_ids: Tensor,
    maskable: Tensor,
    example_ids: Tensor,
    offsets: Tensor,
    rng: Tensor,
    num_masked: int,
    mask_token_id: int,
    replacement_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The masked ids [B, L], positions [M] and targets [M]."""
    outputs = _masked_outputs(input_ids, num_masked)
    held = _contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    _module().sample_masks(
        *map(_address, held),
        0 if replacement_ids is None else replacement_ids.shape[0],
        *input_ids.shape,
        num_masked,
        mask_token_id,
        *map(_address, outputs),
        torch.get_num_threads(),
    )
    return outputs


def sample_masks_threshold(
    input_ids: Tensor,
    thresholds: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    mask_token_id: int,
    replacement_ids: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The masked ids [B, L], positions [M] and targets [M], M as many as were drawn."""
    outputs = _masked_outputs(input_ids, input_ids.numel())
    held = _contiguous(input_ids, thresholds, example_ids, rng, replacement_ids)
    M = _module().sample_masks_threshold(
        *map(_address, held),
        0 if replacement_ids is None else replacement_ids.shape[0],
        *input_ids.shape,
        mask_token_id,
        *map(_address, outputs),
        torch.get_num_threads(),
    )
    return outputs[0], outputs[1][:M].clone(), outputs[2][:M].clone()


def _masked_outputs(input_ids: Tensor, M: int) -> tuple[Tensor, Tensor, Tensor]:
    shown_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    return shown_BL, input_ids.new_empty(M), input_ids.new_empty(M)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    # The caller must hold the list while the kernel runs: nothing else owns a copy.
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _module() -> Any:
    module = backend.extension()
    assert module is not None  # or the op would not have chosen this back end
    return module
