"""Span Cutoff (Shen et al. 2020, arXiv 2009.13818): learn from texts with a span cut out, too.

Shapes: B examples, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.step import Step
from masktuning.ops.philox import draw_words

STREAM_CUTOFF = 3  # of random numbers, for where the span begins; 0 to 2 belong to the ops


@dataclass
class SpanCutoffOptions:
    """The options of Span Cutoff."""

    _argument_group_name = "span_cutoff"

    cutoff_rate: float = field(
        default=0.1, metadata={"help": "Length of the span, as a share of the text's tokens."}
    )
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
        if not 0 <= self.cutoff_rate < 1:
            raise ValueError(f"cutoff_rate is {self.cutoff_rate}: give 0 or more, below 1")
        for name in ("cutoff_weight", "consistency_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")


class SpanCutoff(Method):
    """L = CE(p, y) + w * CE(q, y) + v * JS(p, q), with p of the text and q of the cut text.

    A span of int(cutoff_rate * length) tokens is cut out of each text: the embedding layer's
    output is zero there, and no token attends to it. Where it starts is drawn from (seed, epoch,
    example) alone. Both texts go through the encoder in one pass. The paper's weights are 1.

    Equivalent to::

        p, q = model(x).logits.softmax(-1), model(x, embeddings_zeroed_on=span).logits.softmax(-1)
        m = (p + q) / 2
        return CE(p, y) + w * CE(q, y) + v * (KL(p, m) + KL(q, m)) / 2
    """

    Options = SpanCutoffOptions
    requires = frozenset({"embeddings"})
    terms = ("cutoff",)
    paper = (
        'Shen et al., "A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language '
        'Understanding and Generation", arXiv 2009.13818'
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss: its parts share the two predictions' graphs."""
        options = self.options
        attended_BL = torch.ones_like(batch.input_ids)
        if batch.attention_mask is not None:
            attended_BL = batch.attention_mask
        kept_BL = kept_tokens(attended_BL, options.cutoff_rate, batch.example_ids, step.rng)
        types = batch.token_type_ids
        logits = self.model(
            torch.cat([batch.input_ids, batch.input_ids]),
            torch.cat([attended_BL, attended_BL * kept_BL]),
            None if types is None else torch.cat([types, types]),
            embedding_mask=torch.cat([torch.ones_like(kept_BL), kept_BL]),
        ).logits
        whole_BC, cut_BC = logits.chunk(2)
        labels = batch.labels
        whole = step.cross_entropy(whole_BC, labels)
        cut = step.cross_entropy(cut_BC, labels)
        each_B = divergence(whole_BC, cut_BC, swapped=options.divergence == "swapped")
        consistency = step.mean(each_B * (labels != -100))
        step.log(loss_cls=whole, loss_cut=cut, loss_consistency=consistency)
        yield whole + options.cutoff_weight * cut + options.consistency_weight * consistency


def kept_tokens(attended_BL: Tensor, rate: float, example_ids: Tensor, rng: Tensor) -> Tensor:
    """[B, L] bool, false on the span of each text that is cut out.

    A text of n tokens (special ones included) loses int(n * rate), from a token that is drawn
    uniformly from the first n - int(n * rate). Padding is kept, and has no effect.
    """
    rank_BL = attended_BL.cumsum(1) - 1  # a token's place in its text, wherever the padding is
    length_B = attended_BL.sum(1)
    cut_B = (length_B.double() * rate).long()
    draws_B = draw_words(rng, torch.zeros_like(example_ids), example_ids, STREAM_CUTOFF)[0]
    start_B = (draws_B * (length_B - cut_B)) >> 32
    inside_BL = (rank_BL >= start_B[:, None]) & (rank_BL < (start_B + cut_B)[:, None])
    return ~(inside_BL & attended_BL.bool())


def divergence(p_logits_BC: Tensor, q_logits_BC: Tensor, swapped: bool = False) -> Tensor:
    """[B], the Jensen-Shannon divergence of two predictions, in nats.

    (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; `swapped` gives (KL(m, p) + KL(m, q)) / 2.
    """
    log_p, log_q = (F.log_softmax(x.float(), -1) for x in (p_logits_BC, q_logits_BC))
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0))
    pairs = [(log_m, log_x) if swapped else (log_x, log_m) for log_x in (log_p, log_q)]
    first, second = (F.kl_div(b, a, reduction="none", log_target=True).sum(-1) for a, b in pairs)
    return (first + second) / 2
