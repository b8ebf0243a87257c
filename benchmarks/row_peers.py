"""The work of row_work.py with the cross-entropy of other packages.

These take seconds to compile and choose no token, so stock PyTorch chooses the tokens before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from row_work import Call, choose_and_substitute
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="sum")


_compiled = torch.compile(_summed)


def losses(logits: Tensor) -> dict[str, Loss]:
    """The cross-entropies that are installed and take these logits, by name."""
    found: dict[str, Loss] = {"torch.compile": _compiled}
    if logits.device.type != "cuda":
        return found
    if find_spec("liger_kernel"):
        from liger_kernel.transformers.functional import liger_cross_entropy

        found["liger"] = lambda x, y: liger_cross_entropy(x, y, reduction="sum")
    if find_spec("quack") and logits.shape[1] % 8 == 0:
        from quack.cross_entropy import cross_entropy

        found["quack"] = lambda x, y: cross_entropy(x, y, reduction="sum")
    if find_spec("flash_attn"):
        from flash_attn.ops.triton.cross_entropy import cross_entropy_loss

        found["flash-attn"] = lambda x, y: cross_entropy_loss(x, y)[0].sum()
    return found


def peers(logits: Tensor, rows: dict[str, Any], k: int) -> dict[str, Call]:
    """The work of the row kernel with each of the other cross-entropies, by name."""

    def work(loss: Loss) -> Call:
        def call() -> None:
            if rows["bias"] is not None:
                logits.add_(rows["bias"])
            # On a copy, and first: the loss needs the banned logits, and some losses overwrite all.
            choose_and_substitute(logits.clone(), rows, k)
            leaf = logits.detach().requires_grad_()
            loss(leaf, rows["targets"]).backward()

        return call

    return {name: work(loss) for name, loss in losses(logits).items()}
