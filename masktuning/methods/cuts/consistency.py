"""The loss of Cutoff and HiddenCut: two cross-entropies, and a term that brings them together.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.methods.step import Step


@dataclass
class ConsistencyOptions:
    """The weights of the three terms of the loss."""

    cutoff_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy on the cut texts."}
    )
    consistency_weight: float = field(
        default=1.0, metadata={"help": "Weight of the divergence between the two predictions."}
    )
    divergence: str = field(
        default="js",
        metadata={
            "help": "js: Jensen-Shannon; swapped: the arguments of both of its terms exchanged, as "
            "in the authors' code.",
            "choices": ["js", "swapped"],
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if self.divergence not in ("js", "swapped"):
            raise ValueError(f"divergence is {self.divergence}: give js or swapped")
        for name in ("cutoff_weight", "consistency_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")


def check_share(name: str, value: float) -> None:
    """Raises ValueError unless the option `name` is a share from 0 to below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}: give 0 or more, below 1")


def three_terms(
    step: Step, whole_BC: Tensor, cut_BC: Tensor, labels_B: Tensor, options: ConsistencyOptions
) -> Tensor:
    """CE(p, y) + w * CE(q, y) + v * JS(p, q), with p of the whole and q of the cut texts.

    The three terms are logged. Gradients flow through both predictions, and through their mean.
    """
    whole = step.cross_entropy(whole_BC, labels_B)
    cut = step.cross_entropy(cut_BC, labels_B)
    each_B = divergence(whole_BC, cut_BC, swapped=options.divergence == "swapped")
    consistency = step.mean(each_B * (labels_B != -100))
    step.log(loss_cls=whole, loss_cut=cut, loss_consistency=consistency)
    return whole + options.cutoff_weight * cut + options.consistency_weight * consistency


def divergence(p_logits_BC: Tensor, q_logits_BC: Tensor, swapped: bool = False) -> Tensor:
    """[B], the Jensen-Shannon divergence of two predictions, in nats.

    (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; `swapped` gives (KL(m, p) + KL(m, q)) / 2.
    """
    log_p, log_q = (F.log_softmax(x.float(), -1) for x in (p_logits_BC, q_logits_BC))
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    pairs = [(log_m, log_x) if swapped else (log_x, log_m) for log_x in (log_p, log_q)]
    first, second = (F.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in pairs)
    return (first + second) / 2
