"""Pads a batch and prepares what masking needs, from the very arrays the kernels read.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

MASK_FIELDS = ("maskable", "example_ids", "offsets", "num_masked")
_KEPT = ("input_ids", "token_type_ids", "attention_mask", "label", "labels", "example_id")


class MaskTuningCollator:
    """Dynamic padding, plus `maskable`, `example_ids`, `offsets` and `num_masked`.

    `maskable` [B, L] is false for padding and for every id of `all_special_ids` (also an [UNK]
    inside the text). Row i masks k_i = min(n_i, max(min_per_example, (n_i * P + 2^31) >> 32))
    tokens with P = round(mask_rate * 2^32) and n_i its maskable ones, and none where n_i = 0:
    Mask-tuning (arXiv 2307.10457) section II with A1 and A2's reading, at least one a row.
    `num_masked` is a Python int, so the device is never asked how many rows the head has.

    `attention_mask` is left out where nothing is padded. Columns that no model reads (the raw
    text) are dropped. `pad` may be any collator that returns padded tensors.

    Raises:
        ValueError: if mask_rate is outside (0, 1].
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_rate: float = 0.05,
        min_per_example: int = 1,
        pad: Callable[[list[dict[str, Any]]], Mapping[str, Any]] | None = None,
    ) -> None:
        self.set_rate(mask_rate)
        self.tokenizer = tokenizer
        self.min_per_example = min_per_example
        self.special_ids = torch.tensor(sorted(set(tokenizer.all_special_ids)))
        self.pad = pad or DataCollatorWithPadding(tokenizer)

    def set_rate(self, mask_rate: float) -> None:
        """The share of an example's tokens to mask from now on; ValueError outside (0, 1]."""
        if not 0 < mask_rate <= 1:
            raise ValueError(f"mask_rate must be in (0, 1], not {mask_rate}")
        self.rate_in_2_32 = round(mask_rate * 2**32)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        rows = [{k: v for k, v in row.items() if k in _KEPT} for row in features]
        example_ids = [row.pop("example_id", -1) for row in rows]
        batch = dict(self.pad(rows))
        input_ids = batch["input_ids"]
        attention_mask = batch.get("attention_mask", torch.ones_like(input_ids))
        if bool(attention_mask.all()):
            batch.pop("attention_mask", None)
        maskable = attention_mask.bool() & ~torch.isin(input_ids, self.special_ids)
        offsets = self.offsets(maskable)
        batch["maskable"] = maskable
        batch["example_ids"] = torch.tensor(example_ids)
        batch["offsets"] = offsets
        batch["num_masked"] = int(offsets[-1])  # last: batch sizes are read off the first tensor
        return batch

    def offsets(self, maskable: Tensor) -> Tensor:
        """[B + 1], the exclusive sum of the numbers of tokens to mask."""
        n_B = maskable.sum(1)
        wanted_B = ((n_B * self.rate_in_2_32 + 2**31) >> 32).clamp(min=self.min_per_example)
        counts_B = torch.minimum(n_B, wanted_B)
        return torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])
