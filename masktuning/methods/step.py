"""What a method receives about the optimiser step that its micro-batch belongs to.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.ops import dual_cross_entropy
from masktuning.ops.dual_cross_entropy import mean_over


class Step:
    """The random numbers, the denominators and the log of one micro-batch.

    Attributes:
        rng: [2] int64, the seed and the epoch, for the counter-based random numbers of `ops`.
        counts: what `Method.counts` returned, summed over the micro-batches and processes of the
            optimiser step and divided by the number of processes (since the processes' gradients
            are averaged). Means over them are means over the whole optimiser step.
        label_smoothing: of the cross-entropy, from 0 to below 1.
        joint: whether one backward pass serves all losses, so that every parameter must take part.
        logged: what the method logged, by name.
    """

    def __init__(
        self,
        rng: Tensor,
        counts: dict[str, Tensor],
        label_smoothing: float = 0.0,
        joint: bool = False,
    ) -> None:
        self.rng = rng
        self.counts = counts
        self.label_smoothing = label_smoothing
        self.joint = joint
        self.logged: dict[str, Tensor] = {}

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

            sum = F.cross_entropy(logits_BC, labels_B, reduction="sum", label_smoothing=...)
            return sum / step.counts["labels"]
        """
        # The joint loss of Mask-tuning without its first term: one kernel for every method.
        denominators = F.pad(self.counts["labels"][None], (1, 0))
        no_rows = logits.new_zeros(0, dtype=denominators.dtype)
        dual = dual_cross_entropy(no_rows, logits, labels, denominators, 0.0, self.label_smoothing)
        return dual.loss

    def log(self, **values: Tensor) -> None:
        """Logs this micro-batch's contributions to means over the optimiser step.

        The log shows their sums, averaged over the steps between two of its lines; nothing waits
        for the device. A value `loss_<term>` replaces the one that was yielded for this term. The
        names must be the same in every micro-batch.
        """
        self.logged.update({name: value.detach() for name, value in values.items()})


def stack_counts(counts: list[dict[str, Tensor | int]], device: torch.device) -> Tensor:
    """The sums of the micro-batches' counts, [N] float32 in the order of their names."""
    totals = torch.zeros(len(counts[0]), device=device)
    for i, name in enumerate(counts[0]):
        values = [one[name] for one in counts]
        tensors = [value for value in values if isinstance(value, Tensor)]
        numbers = sum(value for value in values if not isinstance(value, Tensor))
        totals[i] = torch.stack(tensors).sum() + numbers if tensors else numbers
    return totals
