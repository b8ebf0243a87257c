"""HiddenCut (Chen et al. 2021): learn from texts whose hidden states are cut in every layer, too.

Shapes: B examples, L tokens, H width of the hidden states, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.cuts.consistency import ConsistencyOptions, check_share, three_terms
from masktuning.methods.step import Step
from masktuning.modeling.attention_received import (
    AttentionLayer,
    attention_layers,
    attention_received,
)
from masktuning.ops.philox import draw_words

STREAM_HIDDENCUT = 4  # of random numbers, for where the span begins


@dataclass
class HiddenCutOptions(ConsistencyOptions):
    """The options of HiddenCut."""

    _argument_group_name = "hiddencut"

    cutoff_rate: float = field(
        default=0.1,
        metadata={
            "help": "Length of the span that is cut in each layer, as a share of the text's "
            "tokens; at least one token is cut."
        },
    )
    top_share: float = field(
        default=0.4,
        metadata={
            "help": "The span begins at one of the tokens that receive the most attention in the "
            "layer: this share of the text's tokens, at least one."
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        check_share("cutoff_rate", self.cutoff_rate)
        if not 0 < self.top_share <= 1:
            raise ValueError(f"top_share is {self.top_share}: give a share above 0, up to 1")


class HiddenCut(Method):
    """L = CE(p, y) + w * CE(q, y) + v * JS(p, q), with q of a pass whose hidden states are cut.

    p and q are the predictions [B, C], y the labels [B], and JS is the Jensen-Shannon divergence
    (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; gradients flow through p, q and m. In the pass
    that gives q, every layer's feed-forward output o [B, L, H] is cut before the residual u is
    added to it. With the layer's attention probabilities A (before dropout) and a text of l tokens,
    special ones included,

    - imp_j = (1 / heads) * sum_heads sum_i A[head, i, j] is the attention that token j receives;
    - S are the max(1, int(top_share * l)) tokens with the largest imp;
    - the span begins at a token s that is drawn uniformly from S and has max(1, int(cutoff_rate *
      l)) tokens, or fewer where the text ends before;
    - o is zero on the span, and the layer returns LayerNorm(o + u).

    The cut takes the place of the dropout of o in that pass; all other dropouts stay, attention is
    not masked, and the first token may be cut. Draws depend on (seed, epoch, example, layer) alone.
    Both passes are one batch of 2 * B texts. `cutoff_rate` 0.1 and `top_share` 0.4 are those of the
    authors' code, whose script trains with a learning rate of 7e-6, batches of 16 and 10 epochs;
    the weights w = `cutoff_weight` and v = `consistency_weight` are 1 there.

    Deviations: the authors' code exchanges the arguments of both terms of JS; `--divergence
    swapped` does so too. Only tokens of the text count in the sum over i, not padding, so that a
    text is cut alike in every batch.

    Equivalent to::

        p, q = model(x).logits.softmax(-1), model_with_cut_layers(x).logits.softmax(-1)
        m = (p + q) / 2
        return CE(p, y) + w * CE(q, y) + v * (KL(p, m) + KL(q, m)) / 2
    """

    compiles = False
    Options = HiddenCutOptions
    requires = frozenset({"attentions"})
    terms = ("hiddencut",)
    paper = (
        'Chen et al., "HiddenCut: Simple Data Augmentation for Natural Language Understanding '
        'with Better Generalization", arXiv 2106.00149'
    )
    when = (
        "When the model is a BERT, RoBERTa, DistilBERT or ELECTRA that leans on a few tokens of "
        "each text, and Cutoff on the inputs alone did not help."
    )

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss: its parts share the two predictions' graphs.

        Activation checkpointing computes the layers once more in the backward pass, so they are
        cut until the loss has been back-propagated.
        """
        ids, mask, types = batch.input_ids, batch.attention_mask, batch.token_type_ids
        cut = Cut(batch, step.rng, self.options)
        with hidden_states_cut(attention_layers(self.model.encoder), cut):
            logits = self.model(
                torch.cat([ids, ids]),
                None if mask is None else torch.cat([mask, mask]),
                None if types is None else torch.cat([types, types]),
            ).logits
            whole_BC, cut_BC = logits.chunk(2)
            yield three_terms(step, whole_BC, cut_BC, batch.labels, self.options)


class Cut:
    """Where the texts of a batch are cut in a layer."""

    def __init__(self, batch: Batch, rng: Tensor, options: HiddenCutOptions) -> None:
        self.example_ids = batch.example_ids
        self.rng = rng
        self.options = options
        mask = batch.attention_mask
        self.attended_BL = torch.ones_like(batch.input_ids) if mask is None else mask
        self.attended_BL = self.attended_BL.bool()

    def kept(self, layer: int, received_BL: Tensor) -> Tensor:
        """[B, L] bool, false on the span of each text that is cut in a layer.

        The token is drawn by its place among the tokens of S (see `HiddenCut`) from left to right,
        not by its rank in attention: rounding may swap the ranks of two tokens.

        Args:
            layer: its number, from 0.
            received_BL: the attention that each token receives there.
        """
        attended_BL = self.attended_BL
        rank_BL = attended_BL.cumsum(1) - 1  # a token's place in its text, wherever the padding is
        length_B = attended_BL.sum(1)
        among_B = (length_B.double() * self.options.top_share).long().clamp(min=1)
        cut_B = (length_B.double() * self.options.cutoff_rate).long().clamp(min=1)
        received_BL = received_BL.masked_fill(~attended_BL, -1)
        order_BL = received_BL.argsort(dim=1, descending=True, stable=True).argsort(1)
        top_BL = order_BL < among_B[:, None]
        layers_B = torch.full_like(self.example_ids, layer)
        draws_B = draw_words(self.rng, layers_B, self.example_ids, STREAM_HIDDENCUT)[0]
        chosen_B = (draws_B * among_B) >> 32
        first_BL = top_BL & (top_BL.cumsum(1) - 1 == chosen_B[:, None])
        start_B = (rank_BL * first_BL).sum(1)
        inside_BL = (rank_BL >= start_B[:, None]) & (rank_BL < (start_B + cut_B)[:, None])
        return ~(inside_BL & attended_BL)


@contextmanager
def hidden_states_cut(layers: list[AttentionLayer], cut: Cut) -> Iterator[None]:
    """Within it the second half of a batch is cut in every layer.

    Raises:
        ValueError: if the layers are compiled, since compiled code does not call new hooks.
    """
    with ExitStack() as stack:
        for i, parts in enumerate(layers):
            layer = parts.layer
            if "forward" in vars(layer) or layer._compiled_call_impl is not None:
                raise ValueError(
                    "hiddencut changes the layers in every step, which torch_compile does not "
                    "allow: train without it"
                )
            stack.enter_context(_layer_cut(i, parts, cut))
        yield


@contextmanager
def _layer_cut(index: int, parts: AttentionLayer, cut: Cut) -> Iterator[None]:
    B = len(cut.example_ids)
    states: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            states[name] = output[B:].detach()

        return hook

    def cut_output(module: Any, inputs: tuple[Tensor, ...], dropped: Tensor) -> Tensor:
        query, key = states.pop("query"), states.pop("key")
        received_BL = attention_received(query, key, cut.attended_BL, parts.head_size)
        kept_BL = cut.kept(index, received_BL)
        return torch.cat([dropped[:B], inputs[0][B:] * kept_BL[:, :, None]])

    handles = [
        parts.query.register_forward_hook(keep("query")),
        parts.key.register_forward_hook(keep("key")),
        parts.dropout.register_forward_hook(cut_output),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
