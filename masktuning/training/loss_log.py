"""The terms of the loss between two log lines, kept on the device: no step waits for the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masktuning.methods.step import StepTerms


class StepLog:
    """Sums of the micro-batches' terms since the last log, and the last measured norms."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # mlm, classification, same, masked
        self.steps = 0
        self.norms: tuple[Tensor, Tensor] | None = None

    def add(self, terms: StepTerms, last: bool) -> None:
        """Adds a micro-batch; `last` if it ends its optimiser step."""
        values = torch.stack([term.float() for term in terms[1:]])
        self.sums = values if self.sums is None else self.sums + values
        self.steps += last

    def pop(self, accelerator: Any) -> dict[str, float]:
        """The averages over steps and processes, and a fresh start."""
        if self.sums is None or not self.steps:
            return {}
        # Each process has its share of the step's mean times their number: the mean is the term.
        mlm, classification, same, masked = accelerator.reduce(self.sums, "mean").tolist()
        logs = {"loss_cls": classification / self.steps}
        if masked:
            logs["loss_mlm"] = mlm / self.steps
            logs["same_token_share"] = same / masked
        if self.norms is not None:
            logs["grad_norm_mlm"], logs["grad_norm_cls"] = (norm.item() for norm in self.norms)
        self.sums, self.steps, self.norms = None, 0, None
        return logs
