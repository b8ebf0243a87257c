"""The gradient of the word embedding is kept in one place for all backward passes of a run.

Shapes: V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from masktuning.ops import gradient_in_place


class EmbeddingGradient(TrainerCallback):
    """Keeps the memory of the word embedding's gradient while a training runs on one CPU process.

    Trainer drops all gradients after each optimizer step. Allocating that of the embedding again
    for each use of it, and adding them up, takes a tenth to a third of the step of a small model.
    On a GPU and in several processes autograd does it as always: memory there is not returned to
    the operating system, and DDP has to see each gradient.

    Args:
        encoder: returns the encoder that is trained.
    """

    def __init__(self, encoder: Callable[[], Any]) -> None:
        self.encoder = encoder
        self.kept_VH: Tensor | None = None
        self._module: nn.Embedding | None = None

    def on_train_begin(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        """Finds the embedding; nothing changes if its gradient cannot be kept."""
        self.on_train_end()  # where an earlier training was broken off
        module = self.encoder().get_input_embeddings()
        if not _can_keep(module, args):
            return
        self._module = module
        gradient_in_place.mark(module.weight, True)
        # A deep copy of the module has a bound method of its own, as a closure would not be.
        module.forward = MethodType(_forward, module)

    def begin(self) -> None:
        """Called before the backward passes of a micro-batch; clears what the last step left."""
        if self._module is not None and self._module.weight.grad is None:
            if self.kept_VH is None:
                self.kept_VH = torch.empty_like(self._module.weight, requires_grad=False)
            self._module.weight.grad = self.kept_VH.zero_()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Gives the embedding back its own forward and backward pass."""
        if self._module is not None:
            gradient_in_place.mark(self._module.weight, False)
            del self._module.forward
        self._module = self.kept_VH = None


def _can_keep(module: Any, args: TrainingArguments) -> bool:
    if args.device.type != "cpu" or args.world_size > 1:
        return False
    # A subclass may do more than look rows up: BART's multiplies them.
    if type(module) is not nn.Embedding or not module.weight.requires_grad:
        return False
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    hooks = (module.weight._backward_hooks, module.weight._post_accumulate_grad_hooks)
    return not any(hooks) and "forward" not in vars(module)


def _forward(self: nn.Embedding, input: Tensor) -> Tensor:
    return gradient_in_place.embedding(input, self.weight, self.padding_idx)
