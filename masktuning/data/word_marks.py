"""Where words begin in a tokenizer's vocabulary, by the marks of its tokens.

Shapes: V token ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

CONTINUES = "##"
"""What WordPiece puts before the tokens that continue a word."""
STARTS = ("\u0120", "\u2581")
"""What byte-level BPE and SentencePiece put before the tokens that start a word."""


def word_mark(tokens: Sequence[str]) -> str:
    """The mark that most tokens begin with, `CONTINUES` or one of `STARTS`; "" if none does.

    A vocabulary may have a few tokens that begin like the marks of others, such as "##" itself.
    """
    counts = {mark: sum(t.startswith(mark) for t in tokens) for mark in (CONTINUES, *STARTS)}
    mark = max(counts, key=lambda one: counts[one])
    return mark if counts[mark] else ""


def word_starts(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.bool_]:
    """[V] whether each token starts a word, rather than continues that of the token before it.

    Special tokens do, and so does every token of a vocabulary without marks.
    """
    tokens = [str(token) for token in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    mark, special = word_mark(tokens), set(tokenizer.all_special_ids)
    if not mark:
        return np.ones(len(tokens), dtype=bool)
    marked = np.array([token.startswith(mark) for token in tokens])
    starts_V: NDArray[np.bool_] = ~marked if mark == CONTINUES else marked
    starts_V[[i for i in special if i < len(tokens)]] = True
    return starts_V
