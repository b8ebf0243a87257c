"""One file a paper; a method is what one micro-batch of a training step does.

A method is chosen by name (`--method`), built from the arguments, and called by the trainer.
Names are importable without torch, so that `--help` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masktuning.methods.step import Method

# name: (module, class)
METHODS = {
    "mask_tuning": ("masktuning.methods.mask_tuning", "MaskTuning"),
    "finetuning": ("masktuning.methods.finetuning", "Finetuning"),
}


def method_class(name: str) -> type[Method]:
    """The class of the method called `name`; KeyError if there is none."""
    module, attribute = METHODS[name]
    return getattr(import_module(module), attribute)
