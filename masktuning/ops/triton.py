"""The Triton kernels on tensors: grids, block sizes and outputs.

Arguments are checked already; shapes and meanings are those of the op of the same name. Nothing
here waits for the device.

Shapes: B examples, L tokens, M masked positions, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from masktuning.ops.draw import draw_scale

ADDS_BIAS = True
_BLOCK = 8192  # logits a program holds at a time; more, and the choice of a token, would spill


def _kernels(file: str) -> Any:
    # On first use: Triton may be missing, and takes a while to load.
    return import_module(f"masktuning.kernels.{file}")


def _on(device: torch.device) -> Callable[..., None]:
    """Calls with `device` the current one: Triton launches there, wherever the tensors are."""

    def call(launch: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            launch(*arguments, **options)

    return call


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


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
    B, L = input_ids.shape
    masked_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    positions_M, targets_M = input_ids.new_empty(num_masked), input_ids.new_empty(num_masked)
    launch = _kernels("mask_sampling").sample_masks[(max(B, 1),)]
    _on(input_ids.device)(
        launch,
        input_ids.contiguous(),
        maskable.contiguous(),
        example_ids.contiguous(),
        offsets.contiguous(),
        rng.contiguous(),
        rng if replacement_ids is None else replacement_ids.contiguous(),
        masked_BL,
        positions_M,
        targets_M,
        B,
        L,
        0 if replacement_ids is None else replacement_ids.shape[0],
        num_masked,
        mask_token_id,
        BLOCK=max(_power_of_two(L), 16),
        CORRUPT=replacement_ids is not None,
    )
    return masked_BL, positions_M, targets_M


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
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [M], tokens [M], the filled ids [B, L] and log-sum-exps [M] of logits + bias.

    With `gradient_scale` not 0 the logits [M, V] (unit stride along V) are overwritten by
    (p - onehot) * gradient_scale, and what lies between V and their stride is theirs to overwrite.
    """
    M, V = logits.shape
    losses_M = logits.new_empty(M, dtype=torch.float32)
    lse_M = torch.empty_like(losses_M)
    tokens_M = positions.new_empty(M)
    filled_BL = input_ids.clone(memory_format=torch.contiguous_format)
    if M == 0:
        return losses_M, tokens_M, filled_BL, lse_M
    k = min(top_k, V)
    whole = V <= _BLOCK
    kernels = _kernels("token_substitution")
    kernel = kernels.substitute_rows if whole else kernels.substitute_long_rows
    padded, stride = -(-V // 16) * 16, logits.stride(0)
    limit = padded if gradient_scale != 0.0 and padded <= stride and stride % 16 == 0 else V
    block = max(_power_of_two(V), 16) if whole else _BLOCK
    _on(logits.device)(
        kernel[(M,)],
        logits,
        logits if bias is None else bias.contiguous(),
        positions.contiguous(),
        targets.contiguous(),
        example_ids.contiguous(),
        rng.contiguous(),
        rng if banned_ids is None else banned_ids.contiguous(),
        losses_M,
        tokens_M,
        filled_BL,
        lse_M,
        V,
        limit,
        logits.stride(0),
        input_ids.numel(),
        input_ids.shape[1],
        0 if banned_ids is None else banned_ids.shape[0],
        draw_scale(temperature),
        gradient_scale,
        TOP_K=k,
        K=_power_of_two(k),
        BLOCK=block,
        HAS_BIAS=bias is not None,
        GRADIENT=gradient_scale != 0.0,
        num_warps=min(16, max(4, block // 1024)),
        enable_fp_fusion=False,
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
    """{loss, mlm, classification} [3], and the classification term's gradient [B, C]."""
    B, C = logits.shape
    terms = losses.new_empty(3)
    gradient_BC = logits.new_empty(logits.shape, dtype=torch.float32)
    classes = _power_of_two(C)
    _on(logits.device)(
        _kernels("dual_cross_entropy").dual_cross_entropy[(1,)],
        losses.contiguous(),
        logits.contiguous(),
        labels.contiguous(),
        denominators.float().contiguous(),
        terms,
        gradient_BC,
        losses.shape[0],
        B,
        C,
        ignore_index,
        alpha,
        label_smoothing,
        ROWS=max(1, min(128, 8192 // classes)),
        CLASSES=classes,
    )
    return terms, gradient_BC
