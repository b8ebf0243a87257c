"""How much attention each token receives in each layer, from the layer's own queries and keys.

PyTorch's fused attention returns no probabilities. They are computed once more here, without
dropout and without a gradient, from the outputs of the layer's linear maps. So nothing depends on
which implementation of attention the model uses.

Shapes: B examples, L tokens, A heads, D width of a head, H width of the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from masktuning.modeling.attention_mask import probe_batch
from masktuning.modeling.encoder_layers import encoder_layers


class AttentionLayer(NamedTuple):
    """The parts of an encoder layer that a method reads or changes."""

    layer: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    output: nn.Module
    """What the heads' results [B, L, H] enter."""
    head_size: int
    """D."""
    dropout: nn.Module
    """What the feed-forward network's output [B, L, H] enters, before the residual is added."""


def attention_layers(encoder: nn.Module) -> list[AttentionLayer]:
    """The layers of an encoder, if all have the parts of BERT's or of DistilBERT's; else none.

    A feed-forward network that is computed in chunks of tokens has no output of the whole text.
    """
    if getattr(encoder.config, "chunk_size_feed_forward", 0):
        return []
    found = [_parts(layer) for layer in encoder_layers(encoder)]
    return [one for one in found if one is not None] if None not in found else []


def _parts(layer: Any) -> AttentionLayer | None:
    attention = getattr(layer, "attention", None)
    inner = getattr(attention, "self", attention)
    like_bert = hasattr(inner, "query")
    owners = {
        "query": (inner, "query" if like_bert else "q_lin"),
        "key": (inner, "key" if like_bert else "k_lin"),
        "value": (inner, "value" if like_bert else "v_lin"),
        "output": (getattr(attention, "output", None), "dense")
        if like_bert
        else (inner, "out_lin"),
        "dropout": (getattr(layer, "output" if like_bert else "ffn", None), "dropout"),
    }
    parts: dict[str, Any] = {k: getattr(owner, name, None) for k, (owner, name) in owners.items()}
    size = getattr(inner, "attention_head_size", None)
    if not isinstance(size, int) or not all(isinstance(p, nn.Module) for p in parts.values()):
        return None
    return AttentionLayer(layer=layer, head_size=size, **parts)


def attention_received(
    query_BLH: Tensor, key_BLH: Tensor, attended_BL: Tensor, head_size: int
) -> Tensor:
    """[B, L] float32, the attention that each token receives: the mean over heads of its sum.

    imp_j = (1 / A) * sum_a sum_i softmax_j(q_ai . k_aj / sqrt(D)); padding neither gives nor
    receives any.

    Args:
        query_BLH, key_BLH: the outputs of the layer's linear maps, all heads side by side.
        attended_BL: bool, false for padding.
        head_size: D.
    """
    weights_BALL = _probabilities(query_BLH, key_BLH, attended_BL, head_size)
    return (weights_BALL * attended_BL[:, None, :, None]).sum(2).mean(1)


def _probabilities(
    query_BLH: Tensor, key_BLH: Tensor, attended_BL: Tensor, head_size: int
) -> Tensor:
    query, key = (_heads(states.float(), head_size) for states in (query_BLH, key_BLH))
    scores = query @ key.transpose(-1, -2) * head_size**-0.5
    return scores.masked_fill(~attended_BL[:, None, None], -torch.inf).softmax(-1)


def _heads(states_BLH: Tensor, head_size: int) -> Tensor:
    """[B, A, L, D]."""
    return states_BLH.unflatten(-1, (-1, head_size)).transpose(1, 2)


@torch.no_grad()
def gives_attentions(classifier: PreTrainedModel) -> bool:
    """Whether the layers have the parts, and their attention is that of `attention_received`.

    It is tried out: the probabilities times the values must be what the heads return. That is not
    so where positions enter the attention, such as by rotation.
    """
    encoder = classifier.base_model
    layers = attention_layers(encoder)
    if not layers:
        return False
    training = classifier.training
    classifier.eval()
    ids_BL, mask_BL = probe_batch(classifier)
    attended_BL = mask_BL.bool()
    try:
        with ExitStack() as stack:
            seen = [stack.enter_context(_recorded(one)) for one in layers]
            encoder(input_ids=ids_BL, attention_mask=mask_BL)
    finally:
        classifier.train(training)
    for one, states in zip(layers, seen, strict=True):
        if states.keys() != {"query", "key", "value", "output"}:
            return False
        weights = _probabilities(states["query"], states["key"], attended_BL, one.head_size)
        ours = (weights @ _heads(states["value"].float(), one.head_size)).transpose(1, 2).flatten(2)
        heads = states["output"]
        if ours.shape != heads.shape or not torch.allclose(
            ours[attended_BL], heads[attended_BL].float(), rtol=1e-4, atol=1e-5
        ):
            return False
    return True


@contextmanager
def _recorded(parts: AttentionLayer) -> Iterator[dict[str, Tensor]]:
    """What a layer's linear maps return, and what enters its output."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output})

    handles = [
        getattr(parts, name).register_forward_hook(keep(name)) for name in ("query", "key", "value")
    ]
    enters = parts.output.register_forward_pre_hook(
        lambda module, inputs: found.update({"output": inputs[0]})
    )
    try:
        yield found
    finally:
        for handle in (*handles, enters):
            handle.remove()
