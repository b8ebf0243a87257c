"""From parsed sentences to tokenised rows that tell which word each token belongs to."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.data.conllu import ParsedSentence
from masktuning.ops.checks import IGNORE_INDEX

logger = logging.getLogger(__name__)

MAX_WORDS = 105  # of a sentence, as in the code of Glavas and Vulic
MAX_TOKENS = 128  # special tokens included
UNKNOWN_RELATION = -1  # of a relation that is not among those that are learned


def treebank_rows(
    path: str | Path,
    sentences: Sequence[ParsedSentence],
    tokenizer: PreTrainedTokenizerBase,
    relations: Mapping[str, int],
    max_tokens: int = MAX_TOKENS,
) -> list[dict[str, Any]]:
    """A row of token ids for each sentence, with the columns `words`, `heads` and `relations`.

    `words` has one number per token: that of its word, from 1, or 0 for a special token. `heads`
    and `relations` have one number per word. `labels` is -100, since sentences have no label, and
    `example_id` is the number of the sentence in the file, from 0.

    A sentence is tokenised as the text of its words with spaces between them. It therefore has the
    tokens that it would have in any other text, and byte-level tokenizers, which mark the beginning
    of a word by the space before it, need no special treatment.

    A warning gives the number of sentences that are skipped: those that are too long, and those
    with a word of which the tokenizer makes no token.

    Args:
        path: the file of the sentences, for messages.
        sentences: what `read_conllu` returned.
        tokenizer: a fast tokenizer.
        relations: the ids of the relations; others get `UNKNOWN_RELATION`.
        max_tokens: sentences with more tokens than this, special ones included, are skipped; a
            number above 128 counts as 128.

    Raises:
        UsageError: if no sentence is left.
    """
    limit = min(max_tokens, MAX_TOKENS)
    texts = [" ".join(sentence.words) for sentence in sentences]
    encoded = tokenizer(texts, verbose=False)
    rows = []
    for i, (sentence, encoding) in enumerate(zip(sentences, encoded.encodings, strict=True)):
        words = words_of_tokens(sentence.words, encoding.offsets, encoding.sequence_ids)
        complete = set(words) >= set(range(1, len(sentence.words) + 1))
        if len(words) > limit or len(sentence.words) > MAX_WORDS or not complete:
            continue
        rows.append(
            {
                **{name: encoded[name][i] for name in encoded},
                "labels": IGNORE_INDEX,
                "example_id": i,
                "words": words,
                "heads": sentence.heads,
                "relations": [relations.get(r, UNKNOWN_RELATION) for r in sentence.relations],
            }
        )
    if not rows:
        raise UsageError(
            f"{path}: every sentence has more than {MAX_WORDS} words or {limit} tokens"
        )
    if len(rows) < len(sentences):
        logger.warning(
            "%s: %d of %d sentences are skipped, since they have more than %d words or %d tokens, "
            "or a word of which the tokenizer makes no token",
            path,
            len(sentences) - len(rows),
            len(sentences),
            MAX_WORDS,
            limit,
        )
    return rows


def words_of_tokens(
    words: Sequence[str],
    offsets: Sequence[tuple[int, int]],
    sequence_ids: Sequence[int | None],
) -> list[int]:
    """For each token the number of its word, from 1, or 0 for a special token.

    Args:
        words: the words of a text, which has one space between each two.
        offsets: where each token begins and ends in the text. A token may include the space before
            its word, so that its last character decides.
        sequence_ids: None for special tokens.
    """
    ends = list(accumulate(len(word) + (i > 0) for i, word in enumerate(words)))
    return [
        0 if sequence is None else bisect_right(ends, max(end - 1, 0)) + 1
        for (_, end), sequence in zip(offsets, sequence_ids, strict=True)
    ]
