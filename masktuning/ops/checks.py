"""Argument checks shared by the ops: they name the argument, before any kernel runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def check_tensor(
    name: str,
    tensor: Tensor,
    dtype: torch.dtype | tuple[torch.dtype, ...],
    shape: Sequence[int],
    device: torch.device,
) -> None:
    """Checks dtype, shape (-1 for any length) and device of the argument `name`.

    Raises:
        ValueError: saying what it is and what it must be.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{name} must be {wanted}, not {str(tensor.dtype).removeprefix('torch.')}")
    have = tensor.shape
    if have != tuple(shape) and not _fits(have, shape):
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but others of the tensors on {device}")


def runs_directly(*tensors: Tensor | None) -> bool:
    """Whether kernels may be called on the memory of these tensors, past PyTorch's dispatcher.

    They may not where torch.compile traces, under a dispatch mode such as FakeTensorMode, which
    has to see the registered op, or for a subclass of Tensor, which may have no memory.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return _PLAIN.issuperset(map(type, tensors))


def check_once_differentiable(op: str) -> None:
    """Raises RuntimeError in a backward pass that is itself to be differentiated.

    PyTorch's own once_differentiable does the same through a wrapper around every backward pass,
    which is slow beside a pass as short as those here.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} can be differentiated once only (no create_graph=True)")


def _fits(have: Sequence[int], want: Sequence[int]) -> bool:
    return len(have) == len(want) and not any(
        w != -1 and w != h for w, h in zip(want, have, strict=True)
    )
