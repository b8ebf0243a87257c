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
from types import MethodType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from masktuning.modeling.attention_mask import full_mask, probe_batch
from masktuning.modeling.encoder_layers import encoder_layers
from masktuning.ops import MaskedTokens

FIRST = None
"""Given as positions: only the first one of each example is read, K = 1."""


class MaskedPlaces(NamedTuple):
    """The masked positions of a batch, side by side for each example."""

    positions_BK: Tensor
    """Indices b * L + t. Examples with fewer than K masked positions have any others besides."""
    rows_M: Tensor
    """The index b * K + j of each masked position; any index for surplus rows."""


def masked_places(positions_M: Tensor, offsets: Tensor, K: int, L: int) -> MaskedPlaces:
    """Arranges the M masked positions as K per example.

    Args:
        positions_M: int64 as of `sample_masks`; M is not 0.
        offsets: [B + 1] int64 as of `sample_masks`.
        K: the largest number of masked positions of one example, at least 1.
        L: tokens per example.
    """
    B, M = len(offsets) - 1, len(positions_M)
    index_BK = offsets[:-1, None] + torch.arange(K, device=offsets.device)
    positions_BK = positions_M[index_BK.clamp(max=M - 1)].clamp(min=0)
    b_M = positions_M.clamp(min=0) // L
    rows_M = b_M * K + torch.arange(M, device=offsets.device) - offsets[b_M]
    return MaskedPlaces(positions_BK, rows_M.clamp(0, B * K - 1))


@torch.no_grad()
def reducible_layer(classifier: PreTrainedModel) -> nn.Module | None:
    """The last layer, if it may be computed at some positions only, otherwise None.

    It must have the structure of BERT's, and the classifier must read the first position alone.
    Both are tried out: the logits, and the states at some positions, must be those of all.
    """
    layer = _last_layer(classifier.base_model)
    if layer is None:
        return None
    training = classifier.training
    classifier.eval()
    ids_BL, mask_BL = probe_batch(classifier)
    texts = {"input_ids": ids_BL, "attention_mask": full_mask(mask_BL)}
    places_BK = torch.tensor([[3, 1], [8, 12]], device=ids_BL.device)
    try:
        states_BLH, logits_BC = classifier.base_model(**texts)[0], classifier(**texts).logits
        with reads_only(layer, FIRST):
            pairs = [(classifier(**texts).logits, logits_BC)]
        with reads_only(layer, places_BK):
            pairs.append((classifier.base_model(**texts)[0], _at(states_BLH, places_BK)))
    except (ValueError, RuntimeError, IndexError):  # what follows needs the states of all
        return None
    finally:
        classifier.train(training)
    same = all(a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5) for a, b in pairs)
    return layer if same else None


def _last_layer(encoder: nn.Module) -> nn.Module | None:
    """The last layer, if it has the parts of BERT's."""
    layer: Any = next(reversed([*encoder_layers(encoder)]), None)
    attention = getattr(getattr(layer, "attention", None), "self", None)
    linear = [getattr(attention, name, None) for name in ("query", "key", "value")]
    parts = ("attention_head_size", "scaling", "dropout")
    complete = all(isinstance(one, nn.Linear) for one in linear)
    complete = complete and all(hasattr(attention, name) for name in parts)
    complete = complete and hasattr(layer.attention, "output")
    return layer if complete and hasattr(layer, "feed_forward_chunk") else None


@contextmanager
def reads_only(layer: nn.Module | None, positions_BK: Tensor | None) -> Iterator[bool]:
    """Within it, `layer` returns [B, K, H], its states at the given positions only.

    The block is told whether that is so. The layer returns all states [B, L, H], as always, where
    its forward pass is compiled, or is repeated by activation checkpointing.

    Args:
        layer: what `reducible_layer` returned; nothing happens if it is None.
        positions_BK: indices b * L + t, or `FIRST`.
    """
    repeated = getattr(layer, "gradient_checkpointing", False) and getattr(layer, "training", False)
    if layer is None or repeated or "forward" in vars(layer):
        yield False
        return

    def forward(
        self: Any, hidden_BLH: Tensor, attention_mask: Any = None, *_: Any, **__: Any
    ) -> Tensor:
        return _states_at(self, hidden_BLH, attention_mask, positions_BK)

    layer.forward = MethodType(forward, layer)
    try:
        yield True
    finally:
        del layer.forward


def states_at_masked(
    encode: Callable[[], Tensor],
    layer: nn.Module | None,
    masked: MaskedTokens,
    offsets: Tensor,
    max_masked: int,
) -> Tensor:
    """The hidden states [M, H] at masked positions; surplus rows get those of any position.

    Args:
        encode: runs the encoder on the masked texts and returns its states.
        layer: what `reducible_layer` returned.
        masked: what `sample_masks` returned.
        offsets: [B + 1] int64, what the masks were sampled from.
        max_masked: K, the largest number of masked positions of one example; where it is 0, which
            means unknown, the layer computes all positions.
    """
    places = None
    if layer is not None and max_masked:
        places = masked_places(masked.positions, offsets, max_masked, masked.input_ids.shape[1])
    with reads_only(layer if places else None, places.positions_BK if places else None) as reduced:
        states = encode()
    # Surplus rows have the position -1.
    rows_M = places.rows_M if places and reduced else masked.positions.clamp(min=0)
    return states.flatten(0, 1).index_select(0, rows_M)


def _states_at(layer: Any, hidden_BLH: Tensor, mask: Any, positions_BK: Tensor | None) -> Tensor:
    asking_BKH = hidden_BLH[:, :1] if positions_BK is FIRST else _at(hidden_BLH, positions_BK)
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
