"""The backward passes of one micro-batch: one for each loss that a method yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from masktuning.methods.base import Method

Backward = Callable[[Tensor, str], None]
"""backward(loss, term) accumulates the gradients of a loss."""


def backward_each(
    model: Any, method: Method, losses: Iterator[Tensor], backward: Backward
) -> dict[str, Tensor]:
    """Asks for each loss and back-propagates it before the next; their values by their terms.

    `model` is the method in its wrapper, if it has one. Under DDP only the last backward pass
    averages the gradients of the processes.

    Raises:
        ValueError: if the method yields another number of losses than it has terms.
    """
    ddp = isinstance(model, DistributedDataParallel)
    values = {}
    for term in method.terms:
        last = term == method.terms[-1]
        with model.no_sync() if ddp and not last else nullcontext():
            loss = model(losses=losses)
            if loss.requires_grad:
                backward(loss, term)
        values[term] = loss.detach()
    for _ in losses:
        name = type(method).__name__
        raise ValueError(f"{name} yields more losses than its terms {', '.join(method.terms)}")
    return values


def backward_joint(model: Any, losses: Iterator[Tensor], backward: Backward) -> Tensor:
    """Back-propagates the sum of all losses at once; its value.

    For wrappers that allow one backward pass per forward pass only, such as FSDP.
    """
    loss = model(losses=losses, joint=True)
    backward(loss, "")
    return loss.detach()
