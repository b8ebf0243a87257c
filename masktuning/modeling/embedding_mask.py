"""Zeros in place of the embedding layer's output, for methods that cut tokens out of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

EmbeddingMask = Tensor | Callable[[Tensor], Tensor]
"""A mask that broadcasts to the embedding layer's output [B, L, H], or a function from it to one:
its width H may differ from that of the hidden states."""


def embedding_layer(encoder: nn.Module) -> nn.Module | None:
    """The module whose output [B, L, H] enters an encoder's first layer, or None if it has none.

    A bare nn.Embedding is none: the encoder adds positions and normalises after it.
    """
    layer = getattr(encoder, "embeddings", None)
    return layer if isinstance(layer, nn.Module) and not isinstance(layer, nn.Embedding) else None


@contextmanager
def masked_embeddings(encoder: nn.Module, mask: EmbeddingMask | None) -> Iterator[None]:
    """Within it the embedding layer's output [B, L, H] is zero where `mask` is false."""
    if mask is None:
        yield
        return

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * (mask if isinstance(mask, Tensor) else mask(output))

    layer = embedding_layer(encoder)
    assert layer is not None  # a method that needs it requires "embeddings"
    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
