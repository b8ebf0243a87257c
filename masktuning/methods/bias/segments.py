"""The two texts of a pair, found again in its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError


class Segments(NamedTuple):
    """The token ids of both texts of a pair, without special tokens."""

    first: list[int]
    second: list[int]


class Splitter:
    """Finds the texts in the `input_ids` of rows.

    Where the row's `token_type_ids` differ, as for BERT ([CLS] A [SEP] B [SEP]), they tell the two
    texts apart. Otherwise the separator tokens do, be they single or doubled, as for RoBERTa
    (<s> A </s></s> B </s>). An unknown token belongs to its text; other special tokens do not.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.separators = {tokenizer.sep_token_id, tokenizer.eos_token_id} - {None}

    def text(self, row: Mapping[str, Any]) -> list[int]:
        """The token ids of all texts of a row, without special tokens."""
        return self._content(row["input_ids"])

    def pair(self, row: Mapping[str, Any]) -> Segments | None:
        """The two texts of a row, or None if it holds a single one."""
        ids = row["input_ids"]
        types = row.get("token_type_ids")
        if types is not None:
            # Special tokens are left out: XLNet's <cls> has a token type of its own.
            both = [one for one in zip(ids, types, strict=True) if one[0] not in self.special]
            kinds = {kind for _, kind in both}
            if len(kinds) > 1:
                first = [token for token, kind in both if kind != max(kinds)]
                return Segments(first, [token for token, kind in both if kind == max(kinds)])
        places = [i for i, token in enumerate(ids) if token in self.separators]
        if len(places) < 2:
            return None
        return Segments(self._content(ids[: places[0]]), self._content(ids[places[0] :]))

    def pairs(self, rows: Sequence[Mapping[str, Any]], asking: str) -> list[Segments]:
        """The texts of all rows.

        Raises:
            UsageError: for a row of a single text; `asking` is what needs pairs.
        """
        found = []
        for row in rows:
            pair = self.pair(row)
            if pair is None:
                raise UsageError(f"{asking} needs sentence pairs, and {_named(row)} is one text")
            found.append(pair)
        return found

    def _content(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token not in self.special]


def refuse_single_texts(pairs: bool, asking: str) -> None:
    """Raises UsageError for a task of single texts; `asking` is what needs pairs."""
    if not pairs:
        raise UsageError(f"{asking} needs sentence pairs, and the task is one of single texts")


def _named(row: Mapping[str, Any]) -> str:
    return f"the training example with example_id {row['example_id']}"
