"""A model's dropout layers use the package's own dropout op, and only while a training runs.

They remain nn.Dropout with the same p, so the model's state, its printed form and its checkpoints
do not change.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from masktuning.ops.backends import select
from masktuning.ops.dropout import dropout


class FastDropout(TrainerCallback):
    """Speeds up the dropout layers of the model that a Trainer trains on the CPU.

    As the training begins, each nn.Dropout gets a forward pass that calls
    `masktuning.ops.dropout.dropout`; at the end it is as before. Layers in evaluation mode do what
    they always do. Subclasses of nn.Dropout, layers that work in place and layers that have been
    given a forward pass by someone else are left alone, and so is every layer where the op has no
    kernel: on a GPU, or with the back end "reference".
    """

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []

    def on_train_begin(
        self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any
    ) -> None:
        """Replaces the forward pass of the layers."""
        self.restore()  # where an earlier training was broken off
        if select.choose("dropout", args.device) == "reference":
            return
        model: nn.Module = kwargs["model"]
        self.layers = [layer for layer in model.modules() if _is_stock(layer)]
        for layer in self.layers:
            # A deep copy of the layer has a bound method of its own.
            layer.forward = MethodType(forward, layer)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Calls `restore`."""
        self.restore()

    def restore(self) -> None:
        """Gives the layers back their own forward pass."""
        for layer in self.layers:
            vars(layer).pop("forward", None)
        self.layers = []


def _is_stock(layer: nn.Module) -> bool:
    return type(layer) is nn.Dropout and not layer.inplace and "forward" not in vars(layer)


# It is called `forward` because pickle looks up a bound method by its name in the object's class.
def forward(self: nn.Dropout, input: Tensor) -> Tensor:
    """The forward pass of an nn.Dropout during training."""
    return dropout(input, self.p) if self.training else nn.Dropout.forward(self, input)
