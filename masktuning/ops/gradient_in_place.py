"""Adding to the gradient of an embedding where it lies, instead of making another one of its size.

The word embedding is the largest weight of a small encoder, and a training step uses it up to three
times: in both passes through the encoder and in the masked-LM head. Autograd makes a gradient of
the size of the weight for each use and adds them up, although a batch holds few of the words. On a
CPU that takes longer than the arithmetic, since the operating system clears new memory first.

Shapes: V vocabulary, H width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MARK = "_masktuning_gradient_in_place"


def mark(weight: Tensor, on: bool) -> None:
    """Sets whether the ops of this package may add to `weight.grad` in their backward passes.

    They do so only while `weight.grad` is a tensor, and autograd gets no gradient of this weight
    from them then: its hooks do not see it, and torch.autograd.grad does not return it. Where
    `weight.grad` is None they return their gradient as always.
    """
    setattr(weight, _MARK, on)


def gradient_to_add_to(weight: Tensor) -> Tensor | None:
    """`weight.grad` [V, H], if this weight is marked and has one, otherwise None.

    None as well in a backward pass that is to be differentiated itself (`create_graph=True`).
    """
    if torch.is_grad_enabled() or not getattr(weight, _MARK, False):
        return None
    return weight.grad


def embedding(ids: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` [V, H] at `ids`; its backward pass adds to the gradient in place.

    Args:
        ids: int64 of any shape.
        weight: [V, H] float.
        padding_idx: the row that gets no gradient, not negative, or None.

    Returns:
        [*ids.shape, H].

    Equivalent to::

        return F.embedding(ids, weight, padding_idx)
    """
    return _Embedding.apply(ids, weight, padding_idx)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_idx: int | None) -> Tensor:
        ctx.save_for_backward(ids, weight)
        ctx.padding_idx = padding_idx
        return F.embedding(ids, weight, padding_idx)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ids, weight = ctx.saved_tensors
        padding = -1 if ctx.padding_idx is None else ctx.padding_idx
        total_VH = gradient_to_add_to(weight)
        if total_VH is None:
            dense_backward = torch.ops.aten.embedding_dense_backward
            return None, dense_backward(grad, ids, len(weight), padding, False), None
        if padding >= 0:
            grad = grad.masked_fill((ids == padding)[..., None], 0)
        total_VH.index_add_(0, ids.flatten(), grad.flatten(0, -2))
        return None, None, None
