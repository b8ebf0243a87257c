"""What a method logs between two lines of the log, kept on the device: no step waits for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class LossLog:
    """Sums of the micro-batches' values since the last line of the log, and the last norms."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.steps = 0
        self.without: dict[str, Tensor] = {}
        """How many of these steps had nothing to average for a name."""
        self.norms: dict[str, Tensor] = {}
        self.all_names: set[str] = set()
        """Every name that has been in the log."""

    def begin(self) -> None:
        """Forgets what an earlier training left, but not the names."""
        self.sums, self.steps, self.without, self.norms = None, 0, {}, {}

    def add(
        self,
        values: Mapping[str, Tensor],
        ends_step: bool,
        without: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Adds the values of a micro-batch.

        Args:
            values: its shares of the optimiser step's means, by name.
            ends_step: whether it is the last micro-batch of its optimiser step.
            without: whether the step has nothing to average for a name; see `Step.without_mean`.

        Raises:
            ValueError: if the names are not those of the micro-batch before.
        """
        if self.sums is not None and list(values) != self.names:
            raise ValueError(
                f"a method must log the same names in every micro-batch, not {list(values)} "
                f"after {self.names}"
            )
        stacked = torch.stack([value.float() for value in values.values()])
        self.names = list(values)
        self.sums = stacked if self.sums is None else self.sums + stacked
        if not ends_step:
            return
        self.steps += 1
        for name, flag in (without or {}).items():
            self.without[name] = self.without.get(name, 0) + flag.int()

    def pop(self, accelerator: Any) -> dict[str, float]:
        """The averages over steps and processes, and a fresh start.

        A name for which none of the steps had something to average is left out.
        """
        if self.sums is None or not self.steps:
            return {}
        # Each process holds its part of the steps' means, times the number of processes, so their
        # mean over processes is the sum of the parts.
        means = accelerator.reduce(self.sums, "mean").tolist()
        steps = {name: self.steps - int(count) for name, count in self.without.items()}
        logs = {
            name: mean / steps.get(name, self.steps)
            for name, mean in zip(self.names, means, strict=True)
            if steps.get(name, self.steps)
        }
        logs |= {f"grad_norm_{term}": norm.item() for term, norm in self.norms.items()}
        self.sums, self.steps, self.without, self.norms = None, 0, {}, {}
        self.all_names |= logs.keys()
        return logs


def means(logs: Sequence[Mapping[str, float]], names: set[str]) -> dict[str, float]:
    """The means over the lines of the log of what a method logged, as `train_<name>`."""
    found = {name: [log[name] for log in logs if name in log] for name in sorted(names)}
    return {f"train_{name}": sum(values) / len(values) for name, values in found.items() if values}
