"""From tokenised rows to padded batches, and which tokens of a batch are to be masked.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase

from masktuning.data.batch import OF_ROWS

Pad = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


class PaddingCollator:
    """Pads a batch to its longest text and returns the rows' numbers as `example_ids` [B].

    The number of a row is its column `example_id`, or -1 if it has none.

    Columns that no model reads (such as the raw text) are dropped, and `attention_mask` is left
    out where nothing is padded.

    Args:
        tokenizer: the model's tokenizer.
        pad: any collator that returns padded tensors; by default it is transformers'
            DataCollatorWithPadding.
        pad_to_multiple_of: without `pad`, lengths are rounded up to a multiple of this number, but
            not beyond the tokenizer's own limit, so that few different lengths are left.

    Raises:
        ValueError: if labels are strings.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        pad: Pad | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.multiple = pad_to_multiple_of
        self.pad = pad or self._pad_with_tokenizer

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        kept = {*OF_ROWS, "label"}
        rows = [{k: v for k, v in row.items() if k in kept} for row in features]
        if any(isinstance(rows[0].get(name), str) for name in ("label", "labels")):
            raise ValueError(
                "labels must be integers, not strings: encode that column first, for example with "
                "datasets' class_encode_column"
            )
        example_ids = [row.get("example_id", -1) for row in features]
        batch = dict(self.pad(rows))
        mask = batch.get("attention_mask")
        if mask is not None and bool(mask.all()):
            del batch["attention_mask"]
        batch["example_ids"] = torch.tensor(example_ids)
        return batch

    def _pad_with_tokenizer(self, rows: list[dict[str, Any]]) -> Mapping[str, Any]:
        length = max(len(row["input_ids"]) for row in rows)
        if self.multiple is not None:
            rounded = -(-length // self.multiple) * self.multiple
            length = max(length, min(rounded, self.tokenizer.model_max_length))
        return DataCollatorWithPadding(self.tokenizer, "max_length", length)(rows)


def padding_collator(
    tokenizer: PreTrainedTokenizerBase, collator: Pad | None, pad_to_multiple_of: int | None
) -> PaddingCollator:
    """A trainer's `collator` as a PaddingCollator, which it may be already.

    Raises:
        ValueError: if there is one and `pad_to_multiple_of`, which it would ignore, is given too.
    """
    if collator is not None and pad_to_multiple_of is not None:
        raise ValueError(
            "pad_to_multiple_of has no effect on a data_collator of your own: set it there"
        )
    if isinstance(collator, PaddingCollator):
        return collator
    return PaddingCollator(tokenizer, collator, pad_to_multiple_of)


class MaskPlan:
    """Decides which tokens of a batch may be masked, and how many of each example are.

    All tokens may be masked except padding and special tokens; an [UNK] within the text counts as
    special. Of the n_i maskable tokens of example i,

        k_i = min(n_i, max(min_per_example, (n_i * P + 2^31) >> 32)),  P = round(mask_rate * 2^32)

    are masked: Mask-tuning (arXiv 2307.10457), section II. The paper does not say what happens to
    short texts, of which 5 % is less than half a token; at least `min_per_example` are masked.

    Raises:
        ValueError: if mask_rate is outside (0, 1].
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, mask_rate: float, min_per_example: int = 0
    ) -> None:
        if not 0 < mask_rate <= 1:
            raise ValueError(f"mask_rate must be in (0, 1], not {mask_rate}")
        self.rate_in_2_32 = round(mask_rate * 2**32)
        self.min_per_example = min_per_example
        self.special_ids = torch.tensor(sorted(set(tokenizer.all_special_ids)))

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`maskable` [B, L] bool, and `offsets` [B + 1], the exclusive sum of the k_i."""
        maskable = ~torch.isin(input_ids, self.special_ids)
        if attention_mask is not None:
            maskable &= attention_mask.bool()
        n_B = maskable.sum(1)
        wanted_B = ((n_B * self.rate_in_2_32 + 2**31) >> 32).clamp(min=self.min_per_example)
        counts_B = torch.minimum(n_B, wanted_B)
        return maskable, torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])


class MaskTuningCollator(PaddingCollator):
    """Pads a batch and prepares its masks: `maskable`, `example_ids`, `offsets`, `max_masked`
    and `num_masked`.

    `MaskTuningTrainer` does this by itself; the collator is for training loops of your own. The
    rows need a column `example_id`, a different number in each, since masks are drawn by it: rows
    without it would all get the same random numbers.

    Args:
        tokenizer: the model's tokenizer.
        mask_rate: the share of an example's tokens to mask; see `MaskPlan` for the formula.
        min_per_example: how many tokens of an example are masked at least.
        pad: any collator that returns padded tensors.

    Raises:
        ValueError: if mask_rate is outside (0, 1].
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_rate: float = 0.05,
        min_per_example: int = 0,
        pad: Pad | None = None,
    ) -> None:
        super().__init__(tokenizer, pad)
        self.plan = MaskPlan(tokenizer, mask_rate, min_per_example)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(features)
        maskable, offsets = self.plan(batch["input_ids"], batch.get("attention_mask"))
        # The integer comes last: Accelerate reads the size of a batch off its first value.
        masks = {"maskable": maskable, "offsets": offsets, "max_masked": int(offsets.diff().max())}
        return {**batch, **masks, "num_masked": int(offsets[-1])}
