"""Dropout on the CPU in one pass: the mask is drawn, applied and forgotten.

PyTorch's dropout on the CPU fills a tensor with its own generator, one number after the other,
divides it, multiplies by it, and keeps it for the backward pass. Here the mask is a function of one
seed, so that it is computed by vector instructions, and computed again in the backward pass.

The op has neither a CUDA nor a Triton kernel, because on a GPU PyTorch's own dropout is one fused
kernel already. It has no registration for torch.compile either, which fuses dropout itself: while
it traces, the op is F.dropout. `masktuning.training.fast_dropout` uses it in training.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops.backends import select
from masktuning.ops.backends.extension import address, module
from masktuning.ops.checks import KERNEL_FLOATS, runs_directly

_SEEDS = 2**63 - 1  # seeds are below this number


def dropout(x: Tensor, p: float = 0.5) -> Tensor:
    """Sets each element to zero with probability `p`, and divides the others by 1 - p.

    Differentiable in x. The distribution is that of F.dropout, but the random numbers are others:
    each call draws one seed from PyTorch's default generator of the CPU, and Philox4x32-10 draws
    the mask from that seed. The result therefore repeats after torch.manual_seed, in a resumed
    training and under activation checkpointing, and does not depend on the number of threads.

    Only a tensor of float32, float16 or bfloat16 on the CPU is handled in this way, and only where
    the back end is "cpp". Everything else, and anything that torch.compile traces, is passed to
    F.dropout, which is the reference.

    Args:
        x: a tensor of any shape; it need not be contiguous.
        p: the probability that an element is set to zero, in [0, 1].

    Returns:
        A tensor with the shape and the dtype of x; x itself for p = 0.

    Raises:
        ValueError: if p is not in [0, 1].

    Equivalent to::

        return F.dropout(x, p)
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], not {p}")
    if p == 0 or x.numel() == 0:
        return x
    if runs_directly(x) and x.dtype in KERNEL_FLOATS:
        kernels = select.kernels_for("dropout", x)
        if kernels:
            seed = torch.randint(_SEEDS, (), device="cpu")
            return _Dropout.apply(x, seed, p, kernels)
    return F.dropout(x, p)


def _cpp(x: Tensor, seed: Tensor, p: float) -> Tensor:
    values = x.contiguous()
    out = torch.empty_like(values)
    module().dropout(
        address(values),
        KERNEL_FLOATS.index(values.dtype),
        values.numel(),
        address(seed),
        p,
        address(out),
        torch.get_num_threads(),
    )
    return out


KERNELS = select.register("dropout", cpu={"cpp": _cpp})


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, p: float, kernels: str) -> Tensor:
        ctx.save_for_backward(seed)
        ctx.options = p, kernels
        return KERNELS[kernels](x, seed, p)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The op is linear in x, so its gradient is the op itself, and can be differentiated again.
        (seed,), (p, kernels) = ctx.saved_tensors, ctx.options
        again = torch.is_grad_enabled()
        of_x = _Dropout.apply(grad, seed, p, kernels) if again else KERNELS[kernels](grad, seed, p)
        return of_x, None, None, None
