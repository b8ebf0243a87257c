"""The CUDA kernels on tensors of a GPU: which kernel, its grid, its arguments as one struct.

Arguments are checked already; shapes and meanings are those of the op of the same name. Nothing
here waits for the device, and everything runs on torch's current stream.

Shapes: B examples, L tokens, M masked positions, V vocabulary, C classes, S slices of a row.
"""

from __future__ import annotations

import struct
from functools import cache

import torch
from torch import Tensor

from masktuning.ops import cuda_images, native
from masktuning.ops.draw import draw_scale
from masktuning.ops.native import address, contiguous

ADDS_BIAS = True  # the row kernel does, so that the matrix product needs no pass to lay it out

_NAMES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
# Threads and 16-byte vectors a thread that hold one row, by the bytes of an element; the smallest
# that holds V is taken. They are those of csrc/cuda/token_substitution.cu.
_TILES = {2: ((128, 4), (512, 8), (1024, 7)), 4: ((128, 4), (512, 15), (256, 50))}
_SPLIT = (256, 4)
ARGUMENTS = {
    "mask_sampling": "9P5q",
    "token_substitution": "13P8qi2f4x",
    "dual_cross_entropy": "6P4q2d",
}
"""The struct that each file's kernels take, as the module `struct` packs it."""
KERNELS = {
    "mask_sampling": ("sample_masks",),
    "token_substitution": tuple(
        f"{part}_rows_{name}_{threads}x{vectors}{bias}"
        for dtype, name in _NAMES.items()
        for part, tiles in (
            ("substitute", _TILES[dtype.itemsize]),
            ("split", (_SPLIT,)),
            ("finish", (_SPLIT,)),
        )
        for threads, vectors in tiles
        for bias in ("", "_bias")
    ),
    "dual_cross_entropy": tuple(f"dual_cross_entropy_{name}" for name in _NAMES.values()),
}
"""Every kernel, by the file of csrc/cuda that it is in."""


@cache
def load(device: int) -> dict[str, int]:
    """Loads all kernels on a GPU; done when the back end is chosen, so before any graph capture.

    Raises:
        ImageError: if this GPU cannot have them.
    """
    major, minor = torch.cuda.get_device_capability(device)
    return cuda_images.load(device, f"sm_{major}{minor}", KERNELS)


def launch(
    device: torch.device, kernel: str, grid: tuple[int, int], threads: int, arguments: bytes
) -> None:
    """Starts a kernel on torch's current stream of `device`."""
    index = device.index  # that of a tensor's device is never None
    stream = torch._C._cuda_getCurrentRawStream(index)
    native.module().cuda_launch(index, load(index)[kernel], *grid, threads, stream, arguments)


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
    held = contiguous(input_ids, maskable, example_ids, offsets, rng, replacement_ids)
    N = 0 if replacement_ids is None else replacement_ids.shape[0]
    arguments = struct.pack(
        ARGUMENTS["mask_sampling"],
        *map(address, held),
        *map(address, (masked_BL, positions_M, targets_M)),
        *(B, L, N, num_masked, mask_token_id),
    )
    launch(input_ids.device, "sample_masks", (max(B, 1), 1), 256, arguments)
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
    tokenizer_size: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses [M], tokens [M], the filled ids [B, L] and log-sum-exps [M] of logits + bias.

    With `gradient_scale` not 0 the logits [M, V] (unit stride along V) are overwritten by
    (p - onehot) * gradient_scale. With a bias [V] of their dtype, their rows begin at multiples of
    16 bytes.
    """
    M, V = logits.shape
    losses_M = logits.new_empty(M, dtype=torch.float32)
    lse_M = torch.empty_like(losses_M)
    tokens_M = positions.new_empty(M)
    filled_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    outputs = losses_M, tokens_M, filled_BL, lse_M
    if M == 0:  # otherwise the rows copy the text
        filled_BL.copy_(input_ids)
        return outputs
    if bias is not None and bias.data_ptr() % 16 != 0:
        bias = bias.clone()
    k = min(top_k, V)
    whole, (threads, vectors) = _tile(logits)
    slice_length = threads * vectors * 16 // logits.itemsize
    S = 1 if whole else -(-V // slice_length)
    scratch = None if whole else losses_M.new_empty(M, 2 * S + 1 + 2 * S * k)
    held = contiguous(bias, positions, targets, example_ids, rng, banned_ids, input_ids)
    arguments = struct.pack(
        ARGUMENTS["token_substitution"],
        logits.data_ptr(),
        *map(address, held),
        *map(address, (*outputs, scratch)),
        *(V, logits.stride(0), input_ids.numel(), input_ids.shape[1]),
        0 if banned_ids is None else banned_ids.shape[0],
        *(V if tokenizer_size is None else tokenizer_size, S, slice_length),
        *(k, draw_scale(temperature), gradient_scale),
    )
    suffix = "" if bias is None else "_bias"
    name = f"rows_{_NAMES[logits.dtype]}_{threads}x{vectors}{suffix}"
    for part in ("substitute",) if whole else ("split", "finish"):
        launch(logits.device, f"{part}_{name}", (M, S), threads, arguments)
    return outputs


def _tile(logits: Tensor) -> tuple[bool, tuple[int, int]]:
    """Whether a block takes a whole row, and its threads and vectors."""
    M, V = logits.shape
    tiles = _TILES[logits.itemsize]
    needed = V * logits.itemsize // 16
    fits = [tile for tile in tiles if needed <= tile[0] * tile[1]]
    # With fewer rows than processors, a block a row would leave some of them idle.
    if not fits or (fits[0] is not tiles[0] and _processors(logits.device) > M):
        return False, _SPLIT
    return True, fits[0]


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


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
    terms = losses.new_empty(4)
    held = contiguous(losses, logits, labels, denominators.float())
    gradient_BC = logits.new_empty(logits.shape, dtype=torch.float32)
    B, C = logits.shape
    arguments = struct.pack(
        ARGUMENTS["dual_cross_entropy"],
        *map(address, held),
        *map(address, (terms, gradient_BC)),
        *(losses.shape[0], B, C, ignore_index),
        *(alpha, label_smoothing),
    )
    launch(logits.device, f"dual_cross_entropy_{_NAMES[logits.dtype]}", (1, 1), 256, arguments)
    return terms, gradient_BC
