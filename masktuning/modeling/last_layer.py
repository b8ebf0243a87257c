"""The last layer of an encoder, computed only at the positions that a head reads.

A classifier reads the first position and the masked-LM head the masked ones. All other outputs of
the last layer are thrown away, so its queries, its attention and its feed-forward network are only
computed where they are read; keys and values are needed at every position. The results are equal up
to rounding.

Shapes: B examples, L tokens, K positions per example that are read, M masked positions, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from masktuning.modeling.attention_mask import full_mask, probe_batch
from masktuning.modeling.encoder_layers import encoder_layers
from masktuning.ops import MaskedTokens


class MaskedPlaces(NamedTuple):
    """The masked positions of a batch as a table of K positions per example."""

    positions_BK: Tensor
    """Indices b * L + t. The rows of examples with fewer than K masked positions are filled up with
    arbitrary ones."""
    rows_M: Tensor
    """Where in that table each masked position is, as an index b * K + j."""


def masked_places(positions_M: Tensor, offsets: Tensor, K: int, L: int) -> MaskedPlaces:
    """Arranges the M masked positions as K per example.

    Args:
        positions_M: int64 as `sample_masks` returns them; M is not 0. Surplus positions, which are
            -1, get an arbitrary place.
        offsets: [B + 1] int64, what the masks were sampled from.
        K: the largest number of masked positions of one example, at least 1.
        L: tokens per example.
    """
    B, M = len(offsets) - 1, len(positions_M)
    index_BK = offsets[:-1, None] + torch.arange(K, device=offsets.device)
    positions_BK = positions_M[index_BK.clamp(max=M - 1)].clamp(min=0)
    b_M = positions_M.clamp(min=0) // L
    rows_M = b_M * K + torch.arange(M, device=offsets.device) - offsets[b_M]
    return MaskedPlaces(positions_BK, rows_M.clamp(0, B * K - 1))


class LastLayer:
    """The last layer of an encoder, which may be computed at some positions only.

    Args:
        layers: the encoder's list of layers.
    """

    def __init__(self, layers: nn.ModuleList) -> None:
        self.layers = layers
        self.layer: Any = layers[-1]

    def may_be_reduced(self) -> bool:
        """Whether nobody else needs all of its states.

        That is not so where hooks watch the layer or a part of it, where it is compiled, and where
        activation checkpointing will compute it once more in the backward pass.
        """
        layer = self.layer
        wrapped = self.layers[-1] is not layer
        checkpointed = layer.training and getattr(layer, "gradient_checkpointing", False)
        compiled = layer._compiled_call_impl is not None or torch.compiler.is_compiling()
        own = vars(layer).get("forward")
        changed = own is not None and getattr(own, "__func__", None) is not forward
        watched = any(one._forward_hooks or one._forward_pre_hooks for one in layer.modules())
        return not (wrapped or checkpointed or compiled or changed or watched)


class Reading:
    """What is read of a layer's states, and whether the layer has computed no more than that."""

    def __init__(self, layer: nn.Module, positions_BK: Tensor | None) -> None:
        self.layer = layer
        self.positions_BK = positions_BK
        self.reduced = False


# A variable of the context, so that two threads can use one model.
_READING: ContextVar[Reading | None] = ContextVar("reading", default=None)


@contextmanager
def reads_first(last: LastLayer | None) -> Iterator[None]:
    """Within it the layer may compute the first position of each example only: [B, 1, H].

    Nothing changes if `last` is None.
    """
    with _reads(last, None):
        yield


@contextmanager
def _reads(last: LastLayer | None, positions_BK: Tensor | None) -> Iterator[Reading | None]:
    if last is None or not last.may_be_reduced():
        yield None
        return
    reading = Reading(last.layer, positions_BK)
    token = _READING.set(reading)
    last.layer.forward = MethodType(forward, last.layer)
    try:
        yield reading
    finally:
        vars(last.layer).pop("forward", None)
        _READING.reset(token)


# It is called `forward` because pickle looks up a bound method by its name in the object's class.
def forward(
    self: nn.Module, hidden_states: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """The forward pass of a layer whose states are read at some positions only."""
    reading = _READING.get()
    if reading is None or reading.layer is not self:  # another thread computes all positions
        return type(self).forward(self, hidden_states, attention_mask, *args, **kwargs)
    reading.reduced = True
    return _states_at(self, hidden_states, attention_mask, reading.positions_BK)


def states_at_masked(
    encode: Callable[[], Tensor],
    last: LastLayer | None,
    masked: MaskedTokens,
    offsets: Tensor,
    max_masked: int,
) -> Tensor:
    """The hidden states [M, H] at masked positions; surplus positions (-1) get arbitrary ones.

    Args:
        encode: runs the encoder on the masked texts and returns its states.
        last: what `reducible_layer` returned.
        masked: what `sample_masks` returned.
        offsets: [B + 1] int64, what the masks were sampled from.
        max_masked: K, the largest number of masked positions of one example; where it is 0, which
            means unknown, the layer computes all positions.
    """
    places = None
    if last is not None and max_masked:
        places = masked_places(masked.positions, offsets, max_masked, masked.input_ids.shape[1])
    positions_BK = None if places is None else places.positions_BK
    with _reads(last if places else None, positions_BK) as reading:
        states = encode()
    reduced = places is not None and reading is not None and reading.reduced
    rows_M = places.rows_M if places and reduced else masked.positions.clamp(min=0)
    return states.flatten(0, 1).index_select(0, rows_M)


@torch.no_grad()
def reducible_layer(classifier: PreTrainedModel) -> LastLayer | None:
    """The last layer, if it may be computed at some positions only, otherwise None.

    It must have the structure of BERT's, and the classifier must read the first position alone.
    Both are tried out: the logits, and the states at some positions, must equal those of the full
    computation.
    """
    last = _last_layer(classifier.base_model)
    if last is None:
        return None
    training = classifier.training
    classifier.eval()
    ids_BL, mask_BL = probe_batch(classifier)
    texts = {"input_ids": ids_BL, "attention_mask": full_mask(mask_BL)}
    places_BK = torch.tensor([[3, 1], [8, 12]], device=ids_BL.device)
    try:
        states_BLH, logits_BC = classifier.base_model(**texts)[0], classifier(**texts).logits
        with reads_first(last):
            pairs = [(classifier(**texts).logits, logits_BC)]
        with _reads(last, places_BK):
            pairs.append((classifier.base_model(**texts)[0], _at(states_BLH, places_BK)))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # a later module needs the states of all positions, or another type of result
    finally:
        classifier.train(training)
    same = all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)
    return last if same else None


def _last_layer(encoder: nn.Module) -> LastLayer | None:
    """The last layer, if it has the parts of BERT's."""
    layer: Any = next(reversed([*encoder_layers(encoder)]), None)
    attention = getattr(getattr(layer, "attention", None), "self", None)
    linear = [getattr(attention, name, None) for name in ("query", "key", "value")]
    parts = ("attention_head_size", "scaling", "dropout")
    complete = all(isinstance(one, nn.Linear) for one in linear)
    complete = complete and all(hasattr(attention, name) for name in parts)
    complete = complete and hasattr(layer.attention, "output")
    if not complete or not hasattr(layer, "feed_forward_chunk"):
        return None
    lists = (one for one in encoder.modules() if isinstance(one, nn.ModuleList) and len(one))
    return next((LastLayer(one) for one in lists if one[-1] is layer), None)


def _states_at(layer: Any, hidden_BLH: Tensor, mask: Any, positions_BK: Tensor | None) -> Tensor:
    """The layer's states [B, K, H] at some positions, or at the first one if none are given."""
    asking_BKH = hidden_BLH[:, :1] if positions_BK is None else _at(hidden_BLH, positions_BK)
    attention = layer.attention.self

    def heads(linear: nn.Module, states: Tensor) -> Tensor:
        return linear(states).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

    states = F.scaled_dot_product_attention(
        heads(attention.query, asking_BKH),
        heads(attention.key, hidden_BLH),
        heads(attention.value, hidden_BLH),
        # The mask is that of the keys, the same for each position that asks.
        None if mask is None else mask[:, :, :1],
        attention.dropout.p if attention.training else 0.0,
        scale=attention.scaling,
    )
    attended = layer.attention.output(states.transpose(1, 2).flatten(2), asking_BKH)
    return layer.feed_forward_chunk(attended)


def _at(states_BLH: Tensor, positions_BK: Tensor) -> Tensor:
    rows = states_BLH.flatten(0, 1).index_select(0, positions_BK.flatten())
    return rows.unflatten(0, positions_BK.shape)
