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

    Trainer drops all gradients after each optimizer step. Allocating the gradient of the embedding
    again for each use of it, and adding these gradients up, takes a large part of the step of a
    small model. On a GPU autograd does it as always, since memory there is kept anyway, and so it
    does in several processes, where DDP has to see each gradient. Whoever keeps `weight.grad`
    beyond a step must copy it.

    Args:
        encoder: returns the encoder that is trained.
    """

    def __init__(self, encoder: Callable[[], Any]) -> None:
        self.encoder = encoder
        self.kept_VH: Tensor | None = None
        self._module: nn.Embedding | None = None

    def on_train_begin(self, args: TrainingArguments, *rest: Any, **kwargs: Any) -> None:
        """Finds the embedding; nothing changes if its gradient cannot be kept."""
        self.restore()  # where an earlier training was broken off
        if args.device.type != "cpu" or args.world_size > 1 or args.deepspeed:
            return
        try:
            module = self.encoder().get_input_embeddings()
        except NotImplementedError:  # not every encoder has an embedding of words
            return
        if not _can_keep(module):
            return
        self._module = module
        gradient_in_place.mark(module.weight, True)
        # A deep copy of the module has a bound method of its own, as a closure would not be.
        module.forward = MethodType(forward, module)

    def begin(self) -> None:
        """Called before the backward passes of a micro-batch; clears what the last step left."""
        if self._module is None:
            return
        weight = self._module.weight
        keeps = weight.requires_grad and not _watched(weight)
        gradient_in_place.mark(weight, keeps)
        if keeps and weight.grad is None:
            if self.kept_VH is None:
                self.kept_VH = torch.empty_like(weight, requires_grad=False)
            weight.grad = self.kept_VH.zero_()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Calls `restore`."""
        self.restore()

    def restore(self) -> None:
        """Gives the embedding back its own forward and backward pass."""
        if self._module is not None:
            gradient_in_place.mark(self._module.weight, False)
            vars(self._module).pop("forward", None)
        self._module = self.kept_VH = None


def _can_keep(module: Any) -> bool:
    # A subclass may do more than look rows up: BART's multiplies them.
    if type(module) is not nn.Embedding or not module.weight.requires_grad:
        return False
    if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
        return False
    return not _watched(module.weight) and "forward" not in vars(module)


def _watched(weight: Tensor) -> bool:
    """Whether hooks are to see its gradient."""
    return bool(weight._backward_hooks) or bool(weight._post_accumulate_grad_hooks)


# It is called `forward` because pickle looks up a bound method by its name in the object's class.
def forward(self: nn.Embedding, input: Tensor) -> Tensor:
    """The forward pass of an nn.Embedding during training."""
    return gradient_in_place.embedding(input, self.weight, self.padding_idx)
