"""The collator of training batches: padding, then what the method adds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.labels import NO_REGRESSION
from masktuning.methods.base import Method


class MethodCollator:
    """Pads rows with `pad` and passes them to the method's `collate`; returns a mapping.

    Processes of a data loader that are not forked receive it pickled. The model stays behind then,
    so `Method.collate` must not use it. `rng` is the seed and the epoch, for methods that draw
    random numbers here; in shared memory, so that those processes see the epoch change.

    Raises:
        ValueError: for labels that are not whole numbers.
    """

    def __init__(
        self, pad: Callable[[list[Any]], Any], method: Method, rng: Tensor | None = None
    ) -> None:
        self.pad = pad
        self.method = method
        self.rng = rng

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        batch = Batch.from_dict(self.pad(list(rows)))
        if batch.labels.is_floating_point():
            raise ValueError(f"the labels of train_dataset are not whole numbers: {NO_REGRESSION}")
        batch.rng = self.rng
        return self.method.collate(batch, rows).as_dict()

    def __getstate__(self) -> dict[str, Any]:
        light = copy.copy(self.method)
        # Accelerate replaces `forward` and keeps the original, both of which hold the model.
        forwards = ("forward", "_original_forward")
        kept = {name: value for name, value in vars(light).items() if name not in forwards}
        light.__dict__ = {**kept, "_modules": {}, "_parameters": {}, "_buffers": {}}
        return {"pad": self.pad, "method": light, "rng": self.rng}
