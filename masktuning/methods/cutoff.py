"""Cutoff (Shen et al. 2020, arXiv 2009.13818): learn from texts with a part cut out, too.

Shapes: B examples, L tokens, H width of the embedding layer's output, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.cuts.consistency import ConsistencyOptions, check_share, three_terms
from masktuning.methods.step import Step
from masktuning.ops.philox import draw_words

STREAM_CUTOFF = 3  # of random numbers, for what is cut out; the ops have 0 to 2, and dropout 4
TYPES = ("span", "token", "feature")


@dataclass
class CutoffOptions(ConsistencyOptions):
    """The options of Cutoff."""

    _argument_group_name = "cutoff"

    cutoff_type: str = field(
        default="span",
        metadata={
            "help": "What is cut out of each text: span, tokens that follow each other; token, "
            "single tokens; feature, dimensions of the embeddings of all of its tokens.",
            "choices": [*TYPES],
        },
    )
    cutoff_rate: float = field(
        default=0.1,
        metadata={"help": "How much is cut out, as a share of the text's tokens (or dimensions)."},
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if self.cutoff_type not in TYPES:
            raise ValueError(f"cutoff_type is {self.cutoff_type}: give {' or '.join(TYPES)}")
        check_share("cutoff_rate", self.cutoff_rate)


class Cutoff(Method):
    """L = CE(p, y) + w * CE(q, y) + v * JS(p, q), with p of the text and q of the cut text.

    p and q are the predictions [B, C], y the labels [B], and JS is the Jensen-Shannon divergence
    (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; gradients flow through p, q and m. Of a text of
    l tokens (special ones included), or of H dimensions, q lacks what `cutoff_type` says, with
    r = `cutoff_rate`:

    - `span`: int(r * l) tokens from a start that is drawn uniformly. The embedding layer's output
      (after its normalisation and dropout) is zero there, and no token attends to them.
    - `token`: the same of int(r * l) positions that are drawn independently of each other, so one
      may be drawn twice.
    - `feature`: int(r * H) distinct dimensions of the embedding layer's output are zero for all
      tokens of the text; attention is not changed.

    Draws depend on (seed, epoch, example) alone. Both texts go through the encoder in one pass,
    each with dropout of its own. w = `cutoff_weight` and v = `consistency_weight` are 1 in the
    paper, r is 0.1 in the authors' code. Their script for SST-2 trains with a learning rate of
    5e-6, batches of 8, 10 epochs, a weight decay of 0.1 and 6 % of warm-up.

    Deviations: the authors' code exchanges the arguments of both terms of JS; `--divergence
    swapped` does so too. The dimensions of `feature` are distinct, so that int(r * H) of them are
    always cut.

    Equivalent to::

        p, q = model(x).logits.softmax(-1), model(x, embeddings_zeroed_on=cut).logits.softmax(-1)
        m = (p + q) / 2
        return CE(p, y) + w * CE(q, y) + v * (KL(p, m) + KL(q, m)) / 2
    """

    Options = CutoffOptions
    requires = frozenset({"embeddings"})
    terms = ("cutoff",)
    paper = (
        'Shen et al., "A Simple but Tough-to-Beat Data Augmentation Approach for Natural Language '
        'Understanding and Generation", arXiv 2009.13818'
    )
    when = (
        "When predictions should not depend on any single part of a text, and twice the cost of "
        "plain fine-tuning is affordable."
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss: its parts share the two predictions' graphs."""
        logits = self._features(batch, step) if self._cuts_features else self._tokens(batch, step)
        whole_BC, cut_BC = logits.chunk(2)
        yield three_terms(step, whole_BC, cut_BC, batch.labels, self.options)

    @property
    def _cuts_features(self) -> bool:
        return self.options.cutoff_type == "feature"

    def _tokens(self, batch: Batch, step: Step) -> Tensor:
        """[2 * B, C], the logits of the whole texts, then of those with tokens cut out."""
        attended_BL = batch.attention_mask
        if attended_BL is None:
            attended_BL = torch.ones_like(batch.input_ids)
        kept = kept_tokens if self.options.cutoff_type == "token" else kept_outside_span
        kept_BL = kept(attended_BL, self.options.cutoff_rate, batch.example_ids, step.rng)
        return self.model(
            torch.cat([batch.input_ids, batch.input_ids]),
            torch.cat([attended_BL, attended_BL * kept_BL]),
            _twice(batch.token_type_ids),
            embedding_mask=torch.cat([torch.ones_like(kept_BL), kept_BL])[:, :, None],
        ).logits

    def _features(self, batch: Batch, step: Step) -> Tensor:
        """[2 * B, C], the logits of the whole texts, then of those with dimensions cut out."""

        def mask(embedded: Tensor) -> Tensor:
            width, rate = embedded.shape[-1], self.options.cutoff_rate
            kept_BH = kept_features(width, rate, batch.example_ids, step.rng)
            return torch.cat([torch.ones_like(kept_BH), kept_BH])[:, None]

        return self.model(
            torch.cat([batch.input_ids, batch.input_ids]),
            _twice(batch.attention_mask),
            _twice(batch.token_type_ids),
            embedding_mask=mask,
        ).logits


def _twice(values: Tensor | None) -> Tensor | None:
    return None if values is None else torch.cat([values, values])


def kept_outside_span(attended_BL: Tensor, rate: float, example_ids: Tensor, rng: Tensor) -> Tensor:
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


def kept_tokens(attended_BL: Tensor, rate: float, example_ids: Tensor, rng: Tensor) -> Tensor:
    """[B, L] bool, false on the single tokens of each text that are cut out.

    Of a text of n tokens (special ones included) int(n * rate) positions are drawn uniformly with
    replacement. Padding is kept, and has no effect.
    """
    L = attended_BL.shape[1]
    i_L = torch.arange(L, device=attended_BL.device)
    rank_BL = attended_BL.cumsum(1) - 1
    length_B = attended_BL.sum(1)
    cut_B = (length_B.double() * rate).long()
    draws_BL = draw_words(rng, i_L, example_ids[:, None], STREAM_CUTOFF)[0]
    drawn_BL = (draws_BL * length_B[:, None]) >> 32
    # Draws beyond the number wanted go to a slot of their own, so no size depends on a value.
    slots_BL = torch.where(i_L < cut_B[:, None], drawn_BL, L)
    cut = torch.zeros(len(attended_BL), L + 1, dtype=torch.bool, device=attended_BL.device)
    cut = cut.scatter(1, slots_BL, True)
    return ~(cut.gather(1, rank_BL.clamp(min=0)) & attended_BL.bool())


def kept_features(width: int, rate: float, example_ids: Tensor, rng: Tensor) -> Tensor:
    """[B, H] bool, false on the int(H * rate) dimensions with the smallest draws of each text."""
    h_H = torch.arange(width, device=example_ids.device)
    draws_BH = draw_words(rng, h_H, example_ids[:, None], STREAM_CUTOFF)[0]
    keys_BH = (draws_BH << 31) + h_H  # so that ties go to the smaller dimension
    return keys_BH.argsort(1).argsort(1) >= int(width * rate)
