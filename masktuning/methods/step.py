"""What a method receives about the optimiser step that its micro-batch belongs to.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops import DualLoss, dual_cross_entropy
from masktuning.ops.checks import IGNORE_INDEX
from masktuning.ops.dual_cross_entropy import mean_over

WEIGHTS = "class_weights"  # the count that weighted cross-entropies are divided by


class Step:
    """The random numbers, the denominators and the log of one micro-batch.

    Attributes:
        rng: [2] int64, the seed and the epoch, for the counter-based random numbers of `ops`.
        counts: what `Method.counts` returned, summed over the micro-batches and processes of the
            optimiser step and divided by the number of processes (since the processes' gradients
            are averaged). Means over them are means over the whole optimiser step.
        label_smoothing: of the cross-entropy, from 0 to below 1.
        joint: whether one backward pass serves all losses, so that every parameter must take part.
        class_weights: [C] float64, the weights of the classes in the cross-entropy, or None. The
            count "class_weights" is then the sum of the weights of the labels.
        progress: the share of the run's optimiser steps that are done, from 0 to below 1; the same
            for all micro-batches and processes of a step.
        logged: what the method logged, by name.
        averaged_over: the count that each of these is a mean over, by name.
    """

    def __init__(
        self,
        rng: Tensor,
        counts: dict[str, Tensor],
        label_smoothing: float = 0.0,
        joint: bool = False,
        class_weights: Tensor | None = None,
        progress: float = 0.0,
    ) -> None:
        self.rng = rng
        self.counts = counts
        self.label_smoothing = label_smoothing
        self.joint = joint
        self.class_weights = class_weights
        self.progress = progress
        self.logged: dict[str, Tensor] = {}
        self.averaged_over: dict[str, str] = {}

    def mean(self, values: Tensor, over: str = "labels") -> Tensor:
        """This micro-batch's share of the optimiser step's mean of `values`.

        `over` names the count that the sum is divided by. A count of 0 gives 0.
        """
        return mean_over(values.sum(), self.counts[over])

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The share of the optimiser step's mean cross-entropy; examples with label -100 are
        ignored.

        Args:
            logits: [B, C] float.
            labels: [B] int64.

        Equivalent to::

            sum = F.cross_entropy(
                logits_BC, labels_B, class_weights, reduction="sum", label_smoothing=...
            )
            return sum / step.counts["labels" if class_weights is None else "class_weights"]
        """
        # The joint loss of Mask-tuning without its first term: one kernel for every method.
        no_rows = logits.new_zeros(0, dtype=torch.float32)
        return self.joint_loss(no_rows, logits, labels, 0.0).loss

    def joint_loss(
        self, losses: Tensor, logits: Tensor, labels: Tensor, alpha: float, copies: int = 1
    ) -> DualLoss:
        """The share of alpha * L_MLM + (1 - alpha) * L_FT, and of its two terms.

        Args:
            losses: [M] float, the row losses of the masked LM, which are averaged over the count
                "masked"; without rows that count is not needed.
            logits: [B, C] float.
            labels: [B] int64; examples with label -100 are ignored.
            alpha: the weight of the first term, from 0 to 1.
            copies: how often each example of the step is among the B.
        """
        count = self.counts["labels" if self.class_weights is None else WEIGHTS]
        count = copies * count if copies > 1 else count
        if len(losses):
            denominators = torch.stack([self.counts["masked"], count])
        else:
            denominators = F.pad(count[None], (1, 0))
        if self.class_weights is None:
            return dual_cross_entropy(
                losses, logits, labels, denominators, alpha, self.label_smoothing
            )
        # The kernels have no weights. float64 costs nothing for B x C numbers.
        total = F.cross_entropy(
            logits.double(),
            labels,
            self.class_weights,
            reduction="sum",
            label_smoothing=self.label_smoothing,
        )
        dtype = torch.promote_types(logits.dtype, torch.float32)
        mlm = mean_over(losses.sum(), denominators[0]).to(dtype)
        classification = mean_over(total, count).to(dtype)
        return DualLoss(alpha * mlm + (1 - alpha) * classification, mlm, classification)

    def log(self, over: str = "labels", **values: Tensor) -> None:
        """Logs this micro-batch's contributions to means over the optimiser step.

        The log shows their sums, averaged over the steps between two of its lines; nothing waits
        for the device. A value `loss_<term>` replaces the one that was yielded for this term. The
        names must be the same in every micro-batch.

        `over` names the count that the values are means over. Steps in which it is 0 have no such
        mean, and are left out of the average.
        """
        self.logged.update({name: value.detach() for name, value in values.items()})
        self.averaged_over.update(dict.fromkeys(values, over))

    def without_mean(self) -> dict[str, Tensor]:
        """Whether the step has nothing to average, by the name of what was logged.

        What is averaged over the labels is missing: every step has labels.
        """
        return {
            name: self.counts[over] == 0
            for name, over in self.averaged_over.items()
            if over != "labels"
        }


def stack_counts(counts: list[dict[str, Tensor | int]], device: torch.device) -> Tensor:
    """The sums of the micro-batches' counts, [N] float32 in the order of their names."""
    totals = torch.zeros(len(counts[0]), device=device)
    for i, name in enumerate(counts[0]):
        values = [one[name] for one in counts]
        tensors = [value for value in values if isinstance(value, Tensor)]
        numbers = sum(value for value in values if not isinstance(value, Tensor))
        totals[i] = torch.stack(tensors).sum() + numbers if tensors else numbers
    return totals


def weight_of_labels(labels: Tensor, class_weights: Tensor) -> Tensor:
    """The sum of the weights of the labels [B], of which -100 has none."""
    labels = labels.to(class_weights.device)
    # A label that is no class is left to the cross-entropy, which names it.
    within = labels.clamp(0, len(class_weights) - 1)
    return (class_weights[within] * (labels != IGNORE_INDEX)).sum()
