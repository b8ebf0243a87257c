"""What makes a training faster by changing modules of the model, and only while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from accelerate import Accelerator
from transformers import TrainingArguments

from masktuning.training.compile import CompiledLayers, compile_settings
from masktuning.training.embedding_gradient import EmbeddingGradient
from masktuning.training.fast_dropout import FastDropout


class Speedups(NamedTuple):
    """The callbacks of a trainer. Each has `restore`, after which the model is as it was."""

    layers: CompiledLayers | FastDropout
    """torch.compile fuses dropout into the layers itself."""
    embedding: EmbeddingGradient

    def restore(self) -> None:
        """Gives the model back its own modules, also where a training was broken off."""
        for callback in self:
            callback.restore()


def speedups(
    args: TrainingArguments, accelerator: Accelerator, encoder: Callable[[], Any]
) -> Speedups:
    """Those of a run with these arguments; `encoder` returns the encoder that is trained."""
    settings = compile_settings(args, accelerator)
    layers = FastDropout() if settings is None else CompiledLayers(encoder, settings)
    return Speedups(layers, EmbeddingGradient(encoder))
