"""`torch_compile`: the encoder's layers are compiled in place, and only while a training runs.

Accelerate would wrap the whole method, whose forward pass resumes a generator that torch.compile
cannot follow, and the wrapper would hide DDP from the trainer. The layers are where the time goes.
All layers of one class share their graphs, so compiling takes as long for 24 of them as for one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from masktuning.modeling.encoder_layers import encoder_layers


def compile_settings(args: TrainingArguments, accelerator: Accelerator) -> dict[str, Any] | None:
    """The arguments of torch.compile that a user asked for, or None; accelerate compiles nothing.

    What counts is `torch_compile` and its companions of TrainingArguments, and `accelerate launch
    --dynamo_backend`. Sizes are always dynamic: otherwise each length of a batch would need a graph
    of its own, and `accelerate launch` asks for that where nobody else does.
    """
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
    # The accelerator's own may be that of an earlier trainer with these arguments.
    plugin = TorchDynamoPlugin(args.torch_compile_backend, args.torch_compile_mode)
    if plugin.backend == DynamoBackend.NO:
        return None
    return {**plugin.to_kwargs(), "dynamic": True}


class CompiledLayers(TrainerCallback):
    """Compiles the layers of an encoder as a training begins; at its end they are as before.

    Evaluation runs the layers as they are, also in between. The names of the weights never change.

    Args:
        encoder: returns the encoder that is trained.
        settings: the arguments of torch.compile.
    """

    def __init__(self, encoder: Callable[[], nn.Module], settings: dict[str, Any]) -> None:
        self.encoder = encoder
        self.settings = settings
        self.layers: list[nn.Module] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Compiles, or rather lets the first batch compile.

        Raises:
            ValueError: if the encoder has no list of layers.
        """
        self.restore()  # where an earlier training was broken off
        encoder = self.encoder()
        self.layers = list({*encoder_layers(encoder)})
        if not self.layers:
            raise ValueError(
                f"torch_compile finds no layers in {type(encoder).__name__}: train without it"
            )
        kinds = {type(layer) for layer in self.layers}
        forwards = {kind: _compiled_in_training(kind, self.settings) for kind in kinds}
        for layer in self.layers:
            # A deep copy of the layer has a bound method of its own, as a closure would not be.
            layer.forward = MethodType(forwards[type(layer)], layer)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Calls `restore`."""
        self.restore()

    def restore(self) -> None:
        """Gives the layers back their own forward passes."""
        for layer in self.layers:
            vars(layer).pop("forward", None)
        self.layers = []


def _compiled_in_training(kind: type[nn.Module], settings: dict[str, Any]) -> Callable[..., Any]:
    """The forward pass of a class of layers, compiled for layers in training mode."""
    plain: Callable[..., Any] = kind.forward
    compiled = torch.compile(plain, **settings)

    @wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (compiled if self.training else plain)(self, *args, **kwargs)

    return forward
