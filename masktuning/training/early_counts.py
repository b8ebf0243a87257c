"""What the early checks of a training count, on the device: no step waits for it.

Shapes: B examples, L tokens, M masked positions, C classes, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from masktuning.ops import MaskedLMOutput

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over the processes."""
_FEWEST_TOKENS = 30  # from here on a mean of losses is close to normally distributed
_ERRORS = 3  # standard errors by which the head must be worse
_FEWEST_LABELS = 50
_OTHER_SHARE = 0.25  # of the labels: below it, one label for all texts is a reasonable beginning


class WorseThanUnigram(NamedTuple):
    """Two mean losses per masked token, in nats."""

    head: float
    unigram: float


class MaskedLMCounts:
    """The masked-LM head's losses, and how often each token occurs in the texts and as a target.

    Whoever uses it registers `after_head` as a forward hook of the head.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.tokens_V = torch.zeros(vocab_size, dtype=torch.int64, device=device)
        self.targets_V = torch.zeros_like(self.tokens_V)
        self.losses = torch.zeros(2, device=device)  # their sum, and that of their squares

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the tokens of a batch that may be masked."""
        if batch.get("maskable") is not None:
            # A data loader of the user's own may leave its batches on the CPU.
            device = self.tokens_V.device
            ids_BL, maskable_BL = (batch[name].to(device) for name in ("input_ids", "maskable"))
            self.tokens_V.index_add_(0, ids_BL.flatten(), maskable_BL.flatten().long())

    def after_head(self, head: nn.Module, inputs: tuple[Any, ...], output: MaskedLMOutput) -> None:
        """Adds the losses of a training step; `inputs` are those of `MaskedLMHead.forward`."""
        if head.training:
            targets_M, losses_M = inputs[3], output.losses.detach().float()
            # Surplus rows have the target -100 and the loss 0.
            self.targets_V.index_add_(0, targets_M.clamp(min=0), (targets_M >= 0).long())
            self.losses += torch.stack([losses_M.sum(), losses_M.square().sum()])

    def worse_than_unigram(self, reduce: Reduce) -> WorseThanUnigram | None:
        """Both losses if the head's is larger by more than chance explains, or None.

        The unigram model knows how often each token occurs in the texts, but not the occurrence
        that it has to predict: with its own occurrence counted, it would be good at rare tokens.
        The share that it keeps for unseen tokens is that of Witten and Bell.
        """
        summed = (reduce(one).double() for one in (self.losses, self.tokens_V, self.targets_V))
        losses, tokens_V, targets_V = summed
        count = float(targets_V.sum())
        if count < _FEWEST_TOKENS:
            return None
        kinds = (tokens_V > 0).sum()
        others_V = (tokens_V - 1).clamp(min=0) + kinds / len(tokens_V)
        surprise_V = -torch.log(others_V / (tokens_V.sum() - 1 + kinds))
        unigram = float((targets_V * surprise_V).sum()) / count
        unigram_square = float((targets_V * surprise_V.square()).sum()) / count
        head, head_square = (losses / count).tolist()
        variance = head_square - head**2 + unigram_square - unigram**2
        worse = head - unigram > _ERRORS * math.sqrt(max(variance, 0.0) / count)
        return WorseThanUnigram(head, unigram) if worse else None


class LabelCounts:
    """How often each label is predicted in training, and how often it is correct.

    Whoever uses it registers `after_model` as a forward hook of the `MaskTuningModel`, and says
    with `counting` which steps count.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes_C = torch.arange(classes, device=device)
        self.predicted_C, self.labels_C = (torch.zeros_like(self.classes_C) for _ in range(2))
        self.counting = False

    def add(self, batch: dict[str, Any]) -> None:
        """Counts the labels of a batch; -100 is none."""
        if self.counting:
            labels_B = batch["labels"].to(self.classes_C.device)
            self.labels_C += (labels_B[:, None] == self.classes_C).sum(0)

    def after_model(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Counts the predictions of a training step."""
        if self.counting and model.training:
            self.predicted_C += (output.logits.argmax(-1, keepdim=True) == self.classes_C).sum(0)

    def only_prediction(self, reduce: Reduce) -> int | None:
        """The label that all texts got, though many have another one; None if there is none."""
        predicted, labels = (reduce(one).tolist() for one in (self.predicted_C, self.labels_C))
        texts = sum(labels)
        found = [label for label, count in enumerate(predicted) if count]
        if len(found) != 1 or texts < _FEWEST_LABELS:
            return None
        return found[0] if texts - labels[found[0]] >= _OTHER_SHARE * texts else None
