"""Norms of the two terms' gradients, so that a user sees which one drives a run.

In few steps at a large alpha the masked-LM term's gradient dwarfs the classifier's, and the model
underfits: these two numbers in the log show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class GradientNorms:
    """Splits the gradient of one optimiser step into alpha * L_MLM's and the rest.

    Costs one more set of gradients, so the trainer makes one only for the steps that it logs.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.mlm: list[Tensor | None] = [None] * len(self.parameters)

    def backward_mlm(self, backward: Callable[[Tensor], None], loss: Tensor) -> None:
        """`backward(loss)`, and a copy of what it adds to each gradient."""
        before = [p.grad for p in self.parameters]
        for p in self.parameters:
            p.grad = None
        backward(loss)
        for i, (p, old) in enumerate(zip(self.parameters, before, strict=True)):
            new = p.grad
            if new is not None:
                mlm = self.mlm[i]
                self.mlm[i] = new.clone() if mlm is None else mlm.add_(new)
            p.grad = new if old is None else old if new is None else old.add_(new)

    @torch.no_grad()
    def finish(self, scale: float) -> tuple[Tensor, Tensor]:
        """The norms of (alpha * L_MLM, (1 - alpha) * L_FT), after the step's last backward.

        `scale` is what the gradients were multiplied by (a GradScaler's). Among processes the
        parts are averaged first, as the whole gradient was.
        """
        mlm, rest = [], []
        for p, part in zip(self.parameters, self.mlm, strict=True):
            if dist.is_initialized():  # every process must take part, also without a gradient
                part = torch.zeros_like(p) if part is None else part
                dist.all_reduce(part)
                part /= dist.get_world_size()
            if part is not None:
                mlm.append(part)
            if p.grad is not None:
                rest.append(p.grad if part is None else p.grad - part)
        norm = torch.nn.utils.get_total_norm
        return norm(mlm) / scale, norm(rest) / scale
