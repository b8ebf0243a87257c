"""The kernels of masktuning_C on CPU tensors: outputs, addresses, sizes, threads.

Arguments are checked already; shapes and meanings are those of the op of the same name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from masktuning.ops.draw import draw_scale
from masktuning.ops.native import address, contiguous, module

ADDS_BIAS = False  # the matrix product of the CPU adds it
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the row kernel reads, in the order of csrc/token_substitution.h."""


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
    held = contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    module().sample_masks(
        *map(address, held),
        0 if replacement_ids is None else replacement_ids.shape[0],
        *input_ids.shape,
        num_masked,
        mask_token_id,
        *map(address, outputs),
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
    held = contiguous(input_ids, thresholds, example_ids, rng, replacement_ids)
    M = module().sample_masks_threshold(
        *map(address, held),
        0 if replacement_ids is None else replacement_ids.shape[0],
        *input_ids.shape,
        mask_token_id,
        *map(address, outputs),
        torch.get_num_threads(),
    )
    return outputs[0], outputs[1][:M].clone(), outputs[2][:M].clone()


def substitute_tokens(
    logits: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    targets: Tensor,
    example_ids: Tensor,
    rng: Tensor,
    banned_ids: Tensor | None,
    top_k: int,
    temperature: float,
    gradient_scale: float,
    tokenizer_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [M], tokens [M], the filled ids [B, L] and log-sum-exps [M].

    With `gradient_scale` not 0 the logits [M, V] (unit stride along V) are overwritten by
    (p - onehot) * gradient_scale.
    """
    M, V = logits.shape
    losses_M = torch.empty(M, dtype=torch.float32)
    lse_M = torch.empty_like(losses_M)
    tokens_M = torch.empty(M, dtype=torch.int64)
    filled_BL = input_ids.clone(memory_format=torch.contiguous_format)
    held = contiguous(positions, targets, example_ids, rng, banned_ids)
    module().substitute_tokens(
        logits.data_ptr(),
        DTYPES.index(logits.dtype),
        M,
        V,
        logits.stride(0),
        *map(address, held),
        0 if banned_ids is None else banned_ids.shape[0],
        input_ids.numel(),
        input_ids.shape[1],
        V if tokenizer_size is None else tokenizer_size,
        min(top_k, V),
        draw_scale(temperature),
        gradient_scale,
        *map(address, (losses_M, tokens_M, filled_BL, lse_M)),
        torch.get_num_threads(),
    )
    return losses_M, tokens_M, filled_BL, lse_M


def dual_cross_entropy(
    losses: Tensor,
    logits: Tensor,
    labels: Tensor,
    denominators: Tensor,
    alpha: float,
    label_smoothing: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor]:
    """{loss, mlm, classification, d mlm / d losses} [4], and d classification / d logits [B, C]."""
    terms = torch.empty(4, dtype=torch.float32)
    held = contiguous(losses, logits.float(), labels, denominators.float())
    gradient_BC = torch.empty(logits.shape, dtype=torch.float32)
    module().dual_cross_entropy(
        *map(address, held),
        losses.shape[0],
        *logits.shape,
        alpha,
        label_smoothing,
        ignore_index,
        address(terms),
        address(gradient_BC),
    )
    return terms, gradient_BC


def _masked_outputs(input_ids: Tensor, M: int) -> tuple[Tensor, Tensor, Tensor]:
    shown_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    return shown_BL, input_ids.new_empty(M), input_ids.new_empty(M)
