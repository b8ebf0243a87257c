"""Argument checks shared by the ops. They name the argument, and run before any kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IGNORE_INDEX = -100
"""The target of a row, or the label of an example, that does not count in a loss."""
KERNEL_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of logits that the kernels read, in the order of `Dtype` in the C++ sources."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""The dtypes of logits that the ops accept."""
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
        ValueError: saying what the argument is and what it must be.
    """
    check_dtype(name, tensor, dtype)
    have = tensor.shape
    if have != tuple(shape) and not _fits(have, shape):
        raise ValueError(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, but other tensors are on {device}")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...]) -> None:
    """Checks that the argument `name` is a tensor of one of these dtypes.

    Raises:
        ValueError: saying what the argument is and what it must be.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tensor.dtype is dtype:
        return
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise ValueError(f"{name} must be {wanted}, not {str(tensor.dtype).removeprefix('torch.')}")


def runs_directly(*tensors: Tensor | None) -> bool:
    """Whether kernels may be called on the memory of these tensors, past PyTorch's dispatcher.

    They may not while torch.compile traces, under a dispatch mode such as FakeTensorMode, which
    has to see the registered op, or for a subclass of Tensor, which may have no memory.
    """
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    return _PLAIN.issuperset(map(type, tensors))


def check_once_differentiable(op: str) -> None:
    """Raises RuntimeError in a backward pass that is itself to be differentiated.

    PyTorch's own once_differentiable does the same by wrapping every backward pass, which is slow
    compared with the short backward passes of these ops.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op} can be differentiated once only (no create_graph=True)")


def _fits(have: Sequence[int], want: Sequence[int]) -> bool:
    if len(have) != len(want):
        return False
    for w, h in zip(want, have, strict=True):  # noqa: SIM110 (a generator takes twice as long)
        if w != -1 and w != h:
            return False
    return True
