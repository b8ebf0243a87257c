"""The layers of an encoder, whatever its family calls them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def encoder_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The modules in the outermost lists of modules, which is where encoders keep their layers."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from encoder_layers(child)
