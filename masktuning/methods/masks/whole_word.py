"""Whole-word masking: where one token of a word is masked, all of its tokens are.

Shapes: B examples, L tokens, V token ids, W words (W = L, most of them empty).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.example_ids import column, with_column
from masktuning.data.word_marks import word_starts
from masktuning.methods.masks.base import MaskPolicy, column_of, offsets_of, rng_of, set_masked
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops.philox import STREAM_MASKING, draw_words

WORD_IDS = "word_ids"
"""A column that a training set may have: what the tokenizer's `word_ids` gives for each row."""
COLUMN = "word_starts"
_LAST_KEY = torch.iinfo(torch.int64).max


class WholeWords(MaskPolicy):
    """The policy `whole_word`: words are drawn until as many tokens as wanted are masked.

    Of a text of which `random` masks k tokens, words are taken in the order of (random number,
    position) of their first token, as long as those taken before have less than k tokens. So at
    least k tokens are masked, and at most the rest of the last word more. A word is a token that
    starts one with the tokens that follow and continue it; special tokens separate words.

    Which tokens start a word is known from the column `word_ids` of the training set, if it has
    one. Otherwise the marks in the tokenizer's vocabulary tell: "##" on tokens that continue a word
    (BERT), or "Ġ" or "▁" on those that start one (byte-level and SentencePiece vocabularies, where
    punctuation without a space before it belongs to the word that it follows). In a vocabulary
    without such marks every token is a word.

    Equivalent to::

        for word in sorted(words, key=lambda word: (draw[word[0]], word[0])):
            if len(masked) < k:
                masked += word
    """

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """Adds the column `word_starts`: a flag for each token of each row.

        Raises:
            UsageError: for a stream.
        """
        if not hasattr(train, "__len__"):
            raise UsageError(
                "--mask_policy whole_word finds the words of the whole training set beforehand, "
                "which a stream does not allow: use --mask_policy random"
            )
        if len(train) and WORD_IDS in train[0]:
            starts = [_changes(row) for row in column(train, WORD_IDS)]
        else:
            starts_V = word_starts(self.tokenizer)
            starts = [starts_V[np.asarray(row)].tolist() for row in column(train, "input_ids")]
        return with_column(train, COLUMN, starts)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Draws the masks; see `MaskPolicy`."""
        assert batch.maskable is not None and batch.offsets is not None
        starts_BL = column_of(batch, rows, COLUMN, f"mask_policy {self.name}", torch.bool)
        t_L = torch.arange(starts_BL.shape[1])
        rng = rng_of(batch, f"mask_policy {self.name}")
        draws_BL = draw_words(rng, t_L, batch.example_ids[:, None], STREAM_MASKING)[0]
        masked_BL = masked_words(batch.maskable, starts_BL, draws_BL, batch.offsets.diff())
        return set_masked(batch, masked_BL, offsets_of(masked_BL.sum(1)))


def masked_words(
    maskable_BL: Tensor, starts_BL: Tensor, draws_BL: Tensor, counts_B: Tensor
) -> Tensor:
    """[B, L] bool, the tokens of the words that are drawn; see `WholeWords`.

    Args:
        maskable_BL: [B, L] bool, false for padding and special tokens.
        starts_BL: [B, L] bool, whether a token starts a word.
        draws_BL: [B, L] int64, the random numbers of the tokens, below 2^32.
        counts_B: [B] int64, how many tokens of each text are wanted.
    """
    L = maskable_BL.shape[1]
    after_special_BL = torch.ones_like(maskable_BL)
    after_special_BL[:, 1:] = ~maskable_BL[:, :-1]
    first_BL = maskable_BL & (starts_BL | after_special_BL)
    word_BL = (first_BL.cumsum(1) - 1).clamp(min=0)  # of a maskable token, the number of its word
    sizes_BW = torch.zeros_like(draws_BL).scatter_add_(1, word_BL, maskable_BL.long())
    # (draw, t) of the first token in one int64, so that ties go to the earlier word.
    keys_BL = torch.where(first_BL, (draws_BL << 31) + torch.arange(L), _LAST_KEY)
    keys_BW = torch.full_like(draws_BL, _LAST_KEY).scatter_reduce_(1, word_BL, keys_BL, "amin")
    order_BW = keys_BW.argsort(dim=1, stable=True)
    sorted_BW = sizes_BW.gather(1, order_BW)
    before_BW = sorted_BW.cumsum(1) - sorted_BW
    taken_BW = torch.zeros_like(maskable_BL).scatter_(1, order_BW, before_BW < counts_B[:, None])
    return taken_BW.gather(1, word_BL) & maskable_BL


def _changes(word_ids: Sequence[int | None]) -> list[bool]:
    """Whether each token belongs to another word than the token before it, or to none."""
    before = [None, *word_ids[:-1]]
    return [one is None or one != last for one, last in zip(word_ids, before, strict=True)]
