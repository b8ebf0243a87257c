"""What the trainer hands to a method for one micro-batch, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from masktuning.modeling.perturbation import Perturbation


@dataclass(frozen=True)
class StepContext:
    """Everything of the optimiser step that one of its micro-batches needs."""

    rng: Tensor
    """[2] int64, seed and epoch."""
    denominators: Tensor
    """[2] float, the step's masked tokens and labels, divided by the number of processes."""
    perturbation: Perturbation | None
    label_smoothing: float
    two_phase: bool
    """Whether several backward passes a forward are allowed; else one joint forward."""
    backward: Callable[..., None]
    """backward(loss, mlm=False): accumulates gradients; mlm=True marks the masked-LM term."""
    no_sync: Callable[[], AbstractContextManager[Any]]
    """Within it gradients stay on this process."""


class StepTerms(NamedTuple):
    """The values of one micro-batch, on the device: shares of the optimiser step's means."""

    loss: Tensor
    mlm: Tensor
    classification: Tensor
    same: Tensor
    """How many predictions equal the token they replace."""
    masked: Tensor
    """How many tokens were masked."""


class Method(Protocol):
    """A way to train on one micro-batch; `step` calls `context.backward` itself."""

    needs_mlm_head: bool

    def __init__(self, alpha: float) -> None: ...

    def step(self, model: nn.Module, batch: dict[str, Any], context: StepContext) -> StepTerms:
        """Forward and backward for one micro-batch."""
        ...
