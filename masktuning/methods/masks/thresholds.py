"""Mask policies that mask each token with a probability of its own.

A probability q is given as a threshold for the token's random number: round(q * 2^32).

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.example_ids import with_column
from masktuning.methods.masks.base import MaskPolicy, column_of, offsets_of, rng_of, set_masked
from masktuning.methods.masks.l3 import COLUMN, l3_thresholds
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import sample_masks_threshold


class Thresholds(MaskPolicy):
    """Masks every token whose random number is below its threshold; see `Thresholds.thresholds`.

    The number of masked tokens is random, too, and may be 0. The losses are means over the tokens
    that are masked.

    Equivalent to::

        masked_BL = maskable_BL & (draws_BL < thresholds_BL)
    """

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """[B, L] int64, round(p * 2^32) for the probability p that a token is masked.

        The values at special tokens and padding are ignored.
        """
        raise NotImplementedError

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Draws the masks; see `MaskPolicy`."""
        thresholds_BL = self.thresholds(batch, rows)
        return draw_masks(
            batch, thresholds_BL, self.tokenizer.mask_token_id, f"mask_policy {self.name}"
        )


def draw_masks(batch: Batch, thresholds_BL: Tensor, mask_token_id: int, drawn_by: str) -> Batch:
    """Masks the maskable tokens whose random number is below their threshold; returns the batch.

    Done on the CPU while a batch is collated, so that no step has to ask the device how many there
    are. `drawn_by` is named where `batch.rng` is missing; see `rng_of`.
    """
    assert batch.maskable is not None
    masked = sample_masks_threshold(
        batch.input_ids,
        thresholds_BL * batch.maskable,
        batch.example_ids,
        rng_of(batch, drawn_by),
        mask_token_id,
    )
    masked_BL = torch.zeros_like(batch.maskable)
    masked_BL.view(-1)[masked.positions] = True
    return set_masked(batch, masked_BL, offsets_of(masked_BL.sum(1)))


class Bernoulli(Thresholds):
    """The policy `bernoulli`: each token with probability `mask_rate`.

    With `--mask_rate 0.15 --corruption 80-10-10` this is what DataCollatorForLanguageModeling of
    transformers does by default.
    """

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """See `Thresholds.thresholds`."""
        return torch.full_like(batch.input_ids, round(self.options.mask_rate * 2**32))


class ThresholdColumn(Thresholds):
    """The policy `l3`: tokens are masked the more often the less likely the model finds them.

    The thresholds are the column `mask_thresholds` of the training set. If it is not there, it is
    computed from pseudo-likelihoods as in L3Masking (see `l3_thresholds`), with the mean
    `mask_rate` in each text.
    """

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """The training set with the column `mask_thresholds`."""
        if hasattr(train, "__len__") and COLUMN in train[0]:
            return train
        rate = self.options.mask_rate
        thresholds = l3_thresholds(train, self.tokenizer, model, rate, None, cache)
        return with_column(train, COLUMN, thresholds)

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """See `Thresholds.thresholds`."""
        return column_of(batch, rows, COLUMN, f"mask_policy {self.name}", torch.int64)
