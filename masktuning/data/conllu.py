"""Treebanks of Universal Dependencies: files in the CoNLL-U format, https://universaldependencies.org.

A small reader of our own, because errors have to name the file and the line, and a row that lacks a
column has to be one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from masktuning.config.errors import UsageError

_COLUMNS = 10  # ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC
_NO_WORD = re.compile(r"\d+-\d+|\d+\.\d+")  # the ID of a multiword token, or of an empty node


@dataclass(frozen=True)
class ParsedSentence:
    """The words of a sentence, each with its head and its relation to that head."""

    words: list[str]
    heads: list[int]
    """The number of each word's head, counted from 1; 0 for the root of the sentence."""
    relations: list[str]
    """The relation of each word to its head, such as nsubj, or nmod:poss with a subtype."""


def read_conllu(path: str | Path) -> list[ParsedSentence]:
    """The sentences of a CoNLL-U file.

    Multiword tokens (such as 1-2) are skipped, since their words follow as rows of their own, and
    so are empty nodes (such as 1.1), which are no part of the basic tree. Comments are ignored.

    Raises:
        UsageError: if there is no such file, if it holds no sentence, or for a row that is not
            valid, naming its line.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; give a treebank in the CoNLL-U format")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    sentences = []
    rows: list[tuple[int, str]] = []
    # Not splitlines, which would split at line separators within a word as well.
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.strip():
            if not line.startswith("#"):
                rows.append((number, line))
        elif rows:
            sentences.append(_sentence(path, rows))
            rows = []
    if not sentences:
        raise UsageError(f"{path}: holds no sentence; give a treebank in the CoNLL-U format")
    return sentences


def _sentence(path: Path, rows: list[tuple[int, str]]) -> ParsedSentence:
    """The sentence of its rows, which are pairs of a line number and a line."""
    words: list[str] = []
    heads: list[int] = []
    relations: list[str] = []
    lines: list[int] = []
    for number, line in rows:
        columns = line.split("\t")
        if len(columns) != _COLUMNS:
            problem = f"{len(columns)} columns with tabs between them, where CoNLL-U has {_COLUMNS}"
            raise UsageError(f"{path}, line {number}: {problem}")
        if _NO_WORD.fullmatch(columns[0]):
            continue
        if problem := _problem(columns, len(words) + 1):
            raise UsageError(f"{path}, line {number}: {problem}")
        words.append(columns[1])
        heads.append(int(columns[6]))
        relations.append(columns[7])
        lines.append(number)
    for number, head in zip(lines, heads, strict=True):
        if head > len(words):
            raise UsageError(
                f"{path}, line {number}: the head is word {head}, but the sentence has "
                f"{len(words)} words"
            )
    if not words:
        raise UsageError(f"{path}, line {rows[0][0]}: the sentence has no words")
    return ParsedSentence(words, heads, relations)


def _problem(columns: list[str], number: int) -> str:
    """What is wrong with the row of the word `number`, or ""."""
    identity, word, head, relation = columns[0], columns[1], columns[6], columns[7]
    if identity != str(number):
        return f"the first column is {identity!r}, where word {number} is expected"
    if not word.strip():
        return "the second column, the word, is empty"
    if not re.fullmatch(r"[0-9]+", head):
        return f"the seventh column is {head!r}, not the number of the word's head"
    if int(head) == number:
        return f"word {number} is its own head"
    if relation in ("", "_"):
        return "the eighth column, the relation to the head, is empty"
    return ""
