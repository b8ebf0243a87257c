"""What each back end does to substitute tokens: the row kernels in C++, CUDA and Triton.

Every kernel takes logits [M, V] with unit stride along V, a bias [V] that it adds to them or None,
the rows, the choice of tokens, and `scale`. If that is not 0, the logits are overwritten by their
gradient, (p - onehot) * scale. The arguments have been checked. A kernel returns losses [M], tokens
[M], the text [B, L] with the tokens in place, and log-sum-exps [M].

Shapes: B examples, L tokens, M masked positions, N banned ids, S slices of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache

import torch
from torch import Tensor

from masktuning.ops.backends import launch, select, triton
from masktuning.ops.backends.extension import address, contiguous, length, module
from masktuning.ops.checks import KERNEL_FLOATS
from masktuning.ops.masked_rows import MaskedRows, TokenChoice
from masktuning.ops.topk_sampling import draw_scale

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]

# The tiles of csrc/cuda/token_substitution.cu: threads, and 16-byte vectors per thread, that hold
# one row, by the bytes of an element. The smallest that holds V is taken.
_TILES = {2: ((128, 4), (512, 8), (1024, 7)), 4: ((128, 4), (512, 15), (256, 50))}
_SPLIT = (256, 4)
_CUDA = launch.declare(
    "token_substitution",
    "13P8qi2f4x",
    [
        f"{part}_rows_{name}_{threads}x{vectors}{bias}"
        for dtype, name in launch.DTYPE_NAMES.items()
        for part, tiles in (
            ("substitute", _TILES[dtype.itemsize]),
            ("split", (_SPLIT,)),
            ("finish", (_SPLIT,)),
        )
        for threads, vectors in tiles
        for bias in ("", "_bias")
    ],
)

# A program of Triton's row kernel has 512 lanes of 16 bytes on 256 threads. With 64 registers per
# thread, four programs fit on a multiprocessor and have 32 KiB of loads under way.
_LANES, _WARPS = 512, 8
_LIST = 32  # more banned ids than this are passed as a mask of the vocabulary


def _outputs(logits: Tensor, substituted_BL: Tensor) -> Outputs:
    """Room for what a kernel returns, around the text [B, L]."""
    losses_M = logits.new_empty(logits.shape[0], dtype=torch.float32)
    tokens_M = substituted_BL.new_empty(logits.shape[0])
    return losses_M, tokens_M, substituted_BL, torch.empty_like(losses_M)


def _cpp(
    logits: Tensor, bias: Tensor | None, rows: MaskedRows, choice: TokenChoice, scale: float
) -> Outputs:
    assert bias is None  # the matrix product of the CPU adds it
    M, V = logits.shape
    input_ids, positions, targets, example_ids, rng = rows
    banned_ids, top_k, temperature, tokenizer_size = choice
    outputs = _outputs(logits, input_ids.clone(memory_format=torch.contiguous_format))
    held = contiguous(positions, targets, example_ids, rng, banned_ids)
    module().substitute_tokens(
        logits.data_ptr(),
        KERNEL_FLOATS.index(logits.dtype),
        M,
        V,
        logits.stride(0),
        *map(address, held),
        length(banned_ids),
        input_ids.numel(),
        input_ids.shape[1],
        V if tokenizer_size is None else tokenizer_size,
        min(top_k, V),
        draw_scale(temperature),
        scale,
        *map(address, outputs),
        torch.get_num_threads(),
    )
    return outputs


def _cuda(
    logits: Tensor, bias: Tensor | None, rows: MaskedRows, choice: TokenChoice, scale: float
) -> Outputs:
    """A bias must have the dtype of the logits, whose rows then begin at multiples of 16 bytes."""
    M, V = logits.shape
    input_ids, positions, targets, example_ids, rng = rows
    banned_ids, top_k, temperature, tokenizer_size = choice
    text_BL = torch.empty_like(input_ids, memory_format=torch.contiguous_format)
    outputs = _outputs(logits, text_BL)
    if M == 0:  # otherwise the rows copy the text
        text_BL.copy_(input_ids)
        return outputs
    if bias is not None and bias.data_ptr() % 16 != 0:
        bias = bias.clone()
    k = min(top_k, V)
    whole, (threads, vectors) = _tile(logits)
    slice_length = threads * vectors * 16 // logits.itemsize
    S = 1 if whole else -(-V // slice_length)
    scratch = None if whole else outputs[0].new_empty(M, 2 * S + 1 + 2 * S * k)
    held = contiguous(bias, positions, targets, example_ids, rng, banned_ids, input_ids)
    arguments = launch.pack(
        _CUDA,
        logits.data_ptr(),
        *map(address, (*held, *outputs, scratch)),
        *(V, logits.stride(0), input_ids.numel(), input_ids.shape[1], length(banned_ids)),
        *(V if tokenizer_size is None else tokenizer_size, S, slice_length),
        *(k, draw_scale(temperature), scale),
    )
    suffix = "" if bias is None else "_bias"
    name = f"rows_{launch.DTYPE_NAMES[logits.dtype]}_{threads}x{vectors}{suffix}"
    for part in ("substitute",) if whole else ("split", "finish"):
        launch.start(logits.device, f"{part}_{name}", (M, S), threads, arguments)
    return outputs


def _tile(logits: Tensor) -> tuple[bool, tuple[int, int]]:
    """Whether one block takes a whole row, and its threads and vectors per thread."""
    M, V = logits.shape
    tiles = _TILES[logits.itemsize]
    needed = V * logits.itemsize // 16
    fits = [tile for tile in tiles if needed <= tile[0] * tile[1]]
    # With fewer rows than multiprocessors, one block per row would leave some of them idle.
    if not fits or (fits[0] is not tiles[0] and _processors(logits.device) > M):
        return False, _SPLIT
    return True, fits[0]


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _triton(
    logits: Tensor, bias: Tensor | None, rows: MaskedRows, choice: TokenChoice, scale: float
) -> Outputs:
    outputs = _outputs(logits, rows.input_ids.clone(memory_format=torch.contiguous_format))
    if logits.shape[0] > 0:
        started = triton_launch(logits, bias, rows, choice, scale, outputs)
        triton.start(started, logits.device)
    return outputs


def triton_launch(
    logits: Tensor,
    bias: Tensor | None,
    rows: MaskedRows,
    choice: TokenChoice,
    scale: float,
    outputs: Outputs,
) -> triton.Launch:
    """How Triton's kernel is started; `outputs` are what a kernel returns."""
    M, V = logits.shape
    k = min(choice.top_k, V)
    width = 16 // logits.itemsize
    banned, N = _banned(choice.banned_ids, V)
    end = V if choice.tokenizer_size is None else min(choice.tokenizer_size, V)
    text_BL = outputs[2]
    arguments = (
        logits,
        *contiguous(bias, *rows[1:]),
        banned,
        *outputs,
        *(V, end, logits.stride(0), text_BL.numel(), text_BL.shape[1], N),
        *(draw_scale(choice.temperature), scale),
    )
    options = {
        "TOP_K": k,
        "K": triton.power_of_two(k),
        "W": width,
        "LANES": _LANES,
        "TILES": triton.power_of_two(-(-V // (_LANES * width))),
        "LIST": _LIST,
        "BANNED": "none" if banned is None else "list" if N else "mask",
        "GRADIENT": scale != 0.0,
        "num_warps": _WARPS,
        "maxnreg": 64,
        "enable_fp_fusion": False,
    }
    kernel = triton.kernels("token_substitution").substitute_rows
    return triton.Launch(kernel, M, arguments, options)


def _banned(banned_ids: Tensor | None, V: int) -> tuple[Tensor | None, int]:
    """The banned ids as the kernel takes them: a short list and its length, or a mask [V] and 0."""
    if banned_ids is None or banned_ids.shape[0] == 0:
        return None, 0
    if banned_ids.shape[0] <= _LIST:
        return banned_ids.contiguous(), banned_ids.shape[0]
    mask_V = torch.zeros(V, dtype=torch.uint8, device=banned_ids.device)
    return mask_V.index_fill_(0, banned_ids, 1), 0


KERNELS = select.register(
    "substitute_tokens", cpu={"cpp": _cpp}, cuda={"cuda": _cuda, "triton": _triton}
)

_surroundings: list[Callable[[], AbstractContextManager[None]]] = []


@contextmanager
def surrounded(by: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Within the block, each row kernel that `run` starts is wrapped in a `with by():`.

    Whoever measures the time of a training step tells the row kernels from the rest of the head
    this way. It holds for all threads, because autograd may compute logits again in its own.
    """
    _surroundings.append(by)
    try:
        yield
    finally:
        _surroundings.remove(by)


def run(
    name: str,
    logits: Tensor,
    bias: Tensor | None,
    rows: MaskedRows,
    choice: TokenChoice,
    scale: float,
) -> Outputs:
    """Starts the row kernel of the back end `name`; the arguments are those of every kernel."""
    if not _surroundings:
        return KERNELS[name](logits, bias, rows, choice, scale)
    with _surroundings[-1]():
        return KERNELS[name](logits, bias, rows, choice, scale)
