"""The label gate: a perturbed text is trained on only where the classifier gives it its label.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.methods.perturbations.base import Perturbed


@torch.no_grad()
def keeps_label(model: Any, perturbed: Perturbed, batch: Batch, every_text: bool) -> Tensor:
    """[B] bool, whether each perturbed text is the original one or is still given its label.

    The classifier reads the texts without dropout. On a CPU it reads only those that differ from
    their originals; the host would have to wait for a GPU to know which ones these are.

    Args:
        model: the classifier; it is in training mode afterwards.
        perturbed: the perturbed texts.
        batch: the original texts, and their labels.
        every_text: whether it must read every text on a CPU, too. A sharded model must be run by
            all processes or by none.
    """
    differs_B = (perturbed.input_ids != batch.input_ids).any(-1)
    rows = torch.arange(len(differs_B), device=differs_B.device)
    if differs_B.device.type == "cpu" and not every_text:
        rows = rows[differs_B]
    kept_B = ~differs_B
    if len(rows):
        texts = {k: None if v is None else v[rows] for k, v in perturbed.texts().items()}
        model.eval()
        logits = model(perturbed.input_ids[rows], **texts).logits
        model.train()
        kept_B[rows] |= logits.argmax(-1) == batch.labels[rows]
    return kept_B


def choose(kept: Tensor, perturbed: Perturbed, batch: Batch) -> Perturbed:
    """The perturbed texts where `kept` [B] is true, and the originals elsewhere."""

    def chosen(a: Any, b: Any) -> Any:  # which may be the same tensor, or None
        return a if a is b else torch.where(kept[:, None], a, b)

    return Perturbed(
        chosen(perturbed.input_ids, batch.input_ids),
        chosen(perturbed.attention_mask, batch.attention_mask),
        chosen(perturbed.token_type_ids, batch.token_type_ids),
    )
