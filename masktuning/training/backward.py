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
    """Back-propagates each loss before it asks for the next; returns their values by term.

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
    if next(losses, None) is not None:
        raise ValueError(_too_many(method))
    return values


def backward_joint(
    model: Any, method: Method, losses: Iterator[Tensor], backward: Backward
) -> dict[str, Tensor]:
    """Back-propagates the sum of all losses at once; returns their values by term.

    For wrappers that allow only one backward pass per forward pass, such as FSDP.

    Raises:
        ValueError: if the method yields another number of losses than it has terms.
    """
    values: dict[str, Tensor] = {}

    def summed() -> Iterator[Tensor]:
        total = None
        for term in method.terms:
            loss = method.next_loss(losses)
            values[term] = loss.detach()
            total = loss if total is None else total + loss
        if next(losses, None) is not None:
            raise ValueError(_too_many(method))
        assert total is not None
        yield total

    backward(model(losses=summed()), "")
    return values


def _too_many(method: Method) -> str:
    name = type(method).__name__
    return f"{name} yields more losses than its terms {', '.join(method.terms)}"
