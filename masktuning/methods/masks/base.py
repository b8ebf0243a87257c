"""The interface of the mask policies, and the paper's own policy.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.base import Stage
from masktuning.modeling.shared_encoder import MaskTuningModel


class MaskPolicy:
    """Which tokens Mask-tuning masks. This class is the policy `random`, and the others' base.

    The masks of a step are always sampled by `ops.sample_masks`, which masks `batch.offsets.diff()`
    tokens of each example, those with the smallest random numbers among `batch.maskable`. There are
    two kinds of policies:

    - An exact one narrows `batch.maskable` and leaves the numbers, as does `random`, which changes
      nothing. It needs no random numbers.
    - One that draws its masks itself does so in `collate`, on the CPU, with `batch.rng`, and hands
      the result to `set_masked`. The number of masked tokens is then known on the CPU as well, and
      no training step has to ask the device for it.

    A policy keeps no model, since it is pickled with the collator for the processes of a data
    loader.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, options: Any, name: str
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.options = options
        self.name = name

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """The earlier trainings that the policy needs; see `Method.stages`."""
        return []

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """The training set with the policy's columns; see `Method.prepare`."""
        return train

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The batch with the policy's masks, given those of `random`."""
        return batch


def set_masked(batch: Batch, maskable_BL: Tensor, offsets: Tensor) -> Batch:
    """The batch, of which offsets.diff() [B] tokens of each text are masked among maskable_BL."""
    batch.maskable, batch.offsets = maskable_BL, offsets
    batch.num_masked = int(offsets[-1])
    batch.max_masked = int(offsets.diff().max())
    return batch


def offsets_of(counts_B: Tensor) -> Tensor:
    """[B + 1] the exclusive sum of the numbers of tokens to mask."""
    return torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)])


def rng_of(batch: Batch, drawn_by: str) -> Tensor:
    """[2] int64 on the CPU, the seed and the epoch.

    Raises:
        ValueError: if whoever collates the batch has not said what they are.
    """
    if batch.rng is None:
        raise ValueError(
            f"{drawn_by} draws its masks in the collator: set batch.rng to the tensor "
            "[seed, epoch], as MaskTuningTrainer does"
        )
    return batch.rng


def column_of(
    batch: Batch, rows: Sequence[Mapping[str, Any]], name: str, needed_by: str, dtype: torch.dtype
) -> Tensor:
    """[B, L] a column with a value per token, padded with 0 like the batch.

    Raises:
        ValueError: if rows lack the column, or it does not fit the tokens.
    """
    if any(name not in row for row in rows):
        raise ValueError(f"{needed_by} needs the column {name!r} of the training set")
    real_BL = torch.ones_like(batch.input_ids, dtype=torch.bool)
    if batch.attention_mask is not None:
        real_BL = batch.attention_mask.bool()
    values = torch.tensor([value for row in rows for value in row[name]], dtype=dtype)
    if len(values) != int(real_BL.sum()):
        raise ValueError(
            f"the column {name!r} has {len(values)} values for {int(real_BL.sum())} tokens of a "
            "batch: the collator must not shorten texts"
        )
    column_BL = torch.zeros_like(real_BL, dtype=dtype)
    column_BL[real_BL] = values
    return column_BL
