"""Tokenised texts as words that can be replaced, added to, merged and left out.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from masktuning.data.word_marks import CONTINUES, STARTS, word_mark

_WINDOW = 15  # words of a text that are compared around an edit
SPECIAL = -1


class Text(NamedTuple):
    """A text as pieces: words, punctuation marks and special tokens.

    Edits change pieces and keep their number, so that a place means the same word afterwards. A
    piece that was left out is empty, one that was added to holds the new token as well.
    """

    pieces: tuple[tuple[int, ...], ...]
    """The token ids of each piece."""
    segments: tuple[int, ...]
    """Which of the row's texts each piece belongs to, from 0; SPECIAL for special tokens."""
    types: tuple[int, ...]
    """The token type of each piece."""

    def ids(self) -> list[int]:
        """The token ids."""
        return [i for piece in self.pieces for i in piece]

    def token_types(self) -> list[int]:
        """The token type of each token."""
        pairs = zip(self.pieces, self.types, strict=True)
        return [kind for piece, kind in pairs for _ in piece]

    def edited(self, changes: Mapping[int, tuple[int, ...]]) -> Text:
        """The text with other pieces in some places."""
        pieces = tuple(changes.get(i, piece) for i, piece in enumerate(self.pieces))
        return self._replace(pieces=pieces)

    def window(self, place: int) -> Text:
        """The 15 pieces around a place, of the same segment, within the row's outer tokens."""
        half = _WINDOW // 2
        near = range(max(place - half, 0), min(place + half + 1, len(self.pieces)))
        inner = [i for i in near if self.segments[i] == self.segments[place]]
        outer = [i for i in (0, len(self.pieces) - 1) if self.segments[i] == SPECIAL]
        kept = sorted({*inner, *outer})
        return Text(
            tuple(self.pieces[i] for i in kept),
            tuple(self.segments[i] for i in kept),
            tuple(self.types[i] for i in kept),
        )


class Vocabulary:
    """Which tokens are words of their own, and how token ids are words.

    Attributes:
        whole: [V] bool, the tokens that are a whole word of letters and digits.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> None:
        self.special = set(tokenizer.all_special_ids)
        size = min(len(tokenizer), vocab_size)
        self._tokens = [*tokenizer.convert_ids_to_tokens(list(range(size)))]
        mark = word_mark(self._tokens)
        self._mark = mark if mark in STARTS else ""
        self._words = [self._word_of(token) for token in self._tokens]
        flags = [
            i not in self.special and self._begins(token) and self._words[i].isalnum()
            for i, token in enumerate(self._tokens)
        ]
        self.whole = torch.tensor(flags + [False] * (vocab_size - size))

    def split(self, ids: Sequence[int], types: Sequence[int] | None) -> Text:
        """The pieces of a row of tokens."""
        pieces: list[list[int]] = []
        segments: list[int] = []
        kinds: list[int] = []
        for t, i in enumerate(ids):
            if pieces and self._goes_on(pieces[-1][-1], i):
                pieces[-1].append(i)
                continue
            before = max(segments, default=SPECIAL)
            after_special = not segments or segments[-1] == SPECIAL
            segments.append(SPECIAL if i in self.special else before + after_special)
            pieces.append([i])
            kinds.append(0 if types is None else types[t])
        return Text(tuple(map(tuple, pieces)), tuple(segments), tuple(kinds))

    def word(self, piece: Sequence[int]) -> str:
        """The characters of a piece."""
        return "".join(self._words[i] for i in piece)

    def places(self, text: Text) -> list[int]:
        """The places of a text's words, which leaves out punctuation and special tokens."""
        each = enumerate(zip(text.pieces, text.segments, strict=True))
        return [i for i, (piece, s) in each if s != SPECIAL and self.word(piece).isalnum()]

    def _goes_on(self, before: int, i: int) -> bool:
        """Whether token `i` is a part of the word of the token before it."""
        if before in self.special or i in self.special or self._begins(self._tokens[i]):
            return False
        # In byte-level BPE a punctuation mark is written onto the word, without a mark of its own.
        same = self._words[before].isalnum() == self._words[i].isalnum()
        return same or not self._mark

    def _begins(self, token: str) -> bool:
        if self._mark:
            return token.startswith(self._mark)
        return not token.startswith(CONTINUES)

    def _word_of(self, token: str) -> str:
        if self._mark:
            return token.removeprefix(self._mark)
        return token.removeprefix(CONTINUES) if len(token) > len(CONTINUES) else token
