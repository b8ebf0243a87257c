"""What the means of an optimiser step are divided by: over its micro-batches and processes.

Shapes: N counts of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.step import WEIGHTS, stack_counts, weight_of_labels
from masktuning.training.class_weights import class_weights, read_class_weights


class StepCounts:
    """Sums a method's counts and, where classes have weights, those of the labels.

    Args:
        args: the training arguments.
        accelerator: the trainer's, which adds up the processes' counts.
    """

    def __init__(self, args: Any, accelerator: Any) -> None:
        self.args = args
        self.accelerator = accelerator
        self.class_weights: Tensor | None = None
        """[C] float64 on the device, or None."""
        self._names: list[str] = []
        self._weighed: tuple[Any, Any] = (None, None)  # the option, and the training set

    def weigh_classes(self, method: Method, dataset: Any) -> None:
        """Sets `class_weights` from the option of that name and the training set, if there is one.

        A method that trains no classifier, such as dependency parsing, has none.

        Raises:
            ValueError: for weights that cannot be used; see `class_weights`.
        """
        given = read_class_weights(self.args.class_weights)
        if (
            dataset is None
            or method.measures
            or (given == self._weighed[0] and dataset is self._weighed[1])
        ):
            return
        labels = [str(name) for _, name in sorted(method.config.id2label.items())]
        weights = class_weights(given, labels, dataset)
        self.class_weights = None if weights is None else weights.to(self.args.device)
        self._weighed = given, dataset

    def total(self, method: Method, batches: Sequence[Mapping[str, Any]]) -> Tensor:
        """The counts [N] of an optimiser step's batches, divided by the number of processes."""
        counts = [self._of(method, Batch.from_dict(batch)) for batch in batches]
        self._names = list(counts[0])
        totals = stack_counts(counts, self.args.device)
        if self.args.world_size > 1:
            totals = self.accelerator.reduce(totals, "sum") / self.args.world_size
        return totals

    def named(self, totals: Tensor) -> dict[str, Tensor]:
        """What `total` returned last, by the names of the counts."""
        return dict(zip(self._names, totals.unbind(), strict=True))

    def _of(self, method: Method, batch: Batch) -> dict[str, Tensor | int]:
        counts = method.counts(batch)
        if self.class_weights is None:
            return counts
        return {**counts, WEIGHTS: weight_of_labels(batch.labels, self.class_weights)}
