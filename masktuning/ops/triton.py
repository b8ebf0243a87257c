"""The Triton kernels on tensors: grids, block sizes and outputs.

Arguments are checked already; shapes and meanings are those of the op of the same name. Nothing
here waits for the device.

Every kernel has a function that says how it is launched, which the tests compile for GPUs.

Shapes: B examples, L tokens, M masked positions, V vocabulary, C classes, N banned or replacement
ids.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from masktuning.ops.draw import draw_scale

ADDS_BIAS = True
# A program of the row kernel: 512 lanes of 16 bytes on 256 threads. On 64 registers a thread, four
# programs fit on a processor and have 32 KiB of loads under way.
_LANES, _WARPS = 512, 8
_LIST = 32  # more banned ids than this are a mask of the vocabulary


class Launch(NamedTuple):
    """A kernel with everything that it is compiled for and started with."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@cache
def _kernels(file: str) -> Any:
    # On first use: Triton may be missing, and takes a while to load.
    return import_module(f"masktuning.kernels.{file}")


def _start(launch: Launch, device: torch.device) -> None:
    """Starts with `device` the current one: Triton launches there, wherever the tensors are."""
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch.kernel[(launch.programs,)](*launch.arguments, **launch.options)


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
    masked_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    positions_M, targets_M = input_ids.new_empty(num_masked), input_ids.new_empty(num_masked)
    outputs = masked_BL, positions_M, targets_M
    rows = input_ids, maskable, example_ids, offsets, rng
    _start(sampling_launch(rows, mask_token_id, replacement_ids, outputs), input_ids.device)
    return outputs


def sampling_launch(
    rows: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    mask_token_id: int,
    replacement_ids: Tensor | None,
    outputs: tuple[Tensor, Tensor, Tensor],
) -> Launch:
    """`rows` are the first five arguments of `sample_masks`, `outputs` what it returns.

    BLOCK takes one value for all texts of up to 128 tokens, and one for every doubling.
    """
    B, L = rows[0].shape
    arguments = (
        *(tensor.contiguous() for tensor in rows),
        None if replacement_ids is None else replacement_ids.contiguous(),
        *outputs,
        *(B, L, 0 if replacement_ids is None else replacement_ids.shape[0], outputs[1].shape[0]),
        mask_token_id,
    )
    options = {
        "BLOCK": max(_power_of_two(L), 128),
        "CORRUPT": replacement_ids is not None,
        "num_warps": 4,
    }
    # An empty batch still has the surplus slots, which program 0 fills.
    return Launch(_kernels("mask_sampling").sample_masks, max(B, 1), arguments, options)


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
    tokenizer_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [M], tokens [M], the filled ids [B, L] and log-sum-exps [M] of logits + bias.

    With `gradient_scale` not 0 the logits [M, V] (unit stride along V) are overwritten by
    (p - onehot) * gradient_scale. Ids at or above `tokenizer_size` are banned, too.
    """
    M = logits.shape[0]
    losses_M = logits.new_empty(M, dtype=torch.float32)
    lse_M = torch.empty_like(losses_M)
    tokens_M = positions.new_empty(M)
    filled_BL = input_ids.clone(memory_format=torch.contiguous_format)
    outputs = losses_M, tokens_M, filled_BL, lse_M
    if M > 0:
        rows = positions, targets, example_ids, rng
        draw = top_k, temperature, gradient_scale
        launch = substitution_launch(logits, bias, rows, banned_ids, tokenizer_size, draw, outputs)
        _start(launch, logits.device)
    return outputs


def substitution_launch(
    logits: Tensor,
    bias: Tensor | None,
    rows: tuple[Tensor, Tensor, Tensor, Tensor],
    banned_ids: Tensor | None,
    tokenizer_size: int | None,
    draw: tuple[int, float, float],
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Launch:
    """`rows` are positions, targets, example_ids and rng of `substitute_tokens`.

    `draw` is its top_k, temperature and gradient_scale, and `outputs` what it returns.
    """
    M, V = logits.shape
    top_k, temperature, gradient_scale = draw
    k = min(top_k, V)
    width = 16 // logits.itemsize
    banned, N = _banned(banned_ids, V)
    arguments = (
        logits,
        None if bias is None else bias.contiguous(),
        *(tensor.contiguous() for tensor in rows),
        banned,
        *outputs,
        *(V, V if tokenizer_size is None else min(tokenizer_size, V), logits.stride(0)),
        *(outputs[2].numel(), outputs[2].shape[1], N),
        *(draw_scale(temperature), gradient_scale),
    )
    options = {
        "TOP_K": k,
        "K": _power_of_two(k),
        "W": width,
        "LANES": _LANES,
        "TILES": _power_of_two(-(-V // (_LANES * width))),
        "LIST": _LIST,
        "BANNED": "none" if banned is None else "list" if N else "mask",
        "GRADIENT": gradient_scale != 0.0,
        "num_warps": _WARPS,
        "maxnreg": 64,
        "enable_fp_fusion": False,
    }
    return Launch(_kernels("token_substitution").substitute_rows, M, arguments, options)


def _banned(banned_ids: Tensor | None, V: int) -> tuple[Tensor | None, int]:
    """The banned ids as the kernel takes them: a short list and its length, or a mask [V] and 0."""
    if banned_ids is None or banned_ids.shape[0] == 0:
        return None, 0
    if banned_ids.shape[0] <= _LIST:
        return banned_ids.contiguous(), banned_ids.shape[0]
    mask_V = torch.zeros(V, dtype=torch.uint8, device=banned_ids.device)
    return mask_V.index_fill_(0, banned_ids, 1), 0


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
    outputs = losses.new_empty(4), logits.new_empty(logits.shape, dtype=torch.float32)
    operands = losses, logits, labels, denominators.float()
    launch = dual_loss_launch(operands, (ignore_index, alpha, label_smoothing), outputs)
    _start(launch, logits.device)
    return outputs


def dual_loss_launch(
    operands: tuple[Tensor, Tensor, Tensor, Tensor],
    settings: tuple[int, float, float],
    outputs: tuple[Tensor, Tensor],
) -> Launch:
    """`operands` are the first four arguments of `dual_cross_entropy`, `outputs` what it returns.

    `settings` are its ignore_index, alpha and label_smoothing.
    """
    B, C = operands[1].shape
    classes = _power_of_two(C)
    arguments = (
        *(tensor.contiguous() for tensor in operands),
        *outputs,
        *(operands[0].shape[0], B, C, *settings),
    )
    options = {
        "ROWS": max(1, min(128, 8192 // classes)),
        "CLASSES": classes,
        "num_warps": 4,
    }
    return Launch(_kernels("dual_cross_entropy").dual_cross_entropy, 1, arguments, options)
