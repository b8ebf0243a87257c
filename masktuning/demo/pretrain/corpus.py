"""Plain text to a WordPiece vocabulary and to packed token files that need no memory.

A corpus file holds one document a line, and may be gzipped. A document whose hash falls below the
held-out share is never trained on, not even by the vocabulary; copies fall on the same side.

Shapes: B windows, L tokens.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import BertTokenizer, PreTrainedTokenizerBase

from masktuning.config.errors import UsageError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 200  # Wikipedia's rare scripts would eat a vocabulary of 8k
_DOCUMENTS_AT_ONCE = 256


def check_files(files: Sequence[str]) -> None:
    """Raises UsageError on a corpus file that is missing or without text, or begins unreadable."""
    for name in files:
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such corpus file")
        if next(_lines([name]), None) is None:
            raise UsageError(f"{name}: holds no text; give one document a line")


def documents(files: Sequence[str], held_out: bool, share: float) -> Iterator[str]:
    """The documents to train on, or those held out, in the files' order."""
    return (text for text in _lines(files) if is_held_out(text, share) == held_out)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is for evaluation alone; a function of its text."""
    draw = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
    return draw < share * 2**64


def _lines(files: Sequence[str]) -> Iterator[str]:
    """The lines that hold text; UsageError with its number on one that cannot be read."""
    for name in files:
        number = 0
        try:
            opened: IO[bytes] | gzip.GzipFile
            with gzip.open(name) if name.endswith(".gz") else open(name, "rb") as opened:
                for line in opened:
                    number += 1
                    if text := line.decode("utf-8").strip():
                        yield text
        except UnicodeDecodeError as error:
            raise UsageError(f"{name}, line {number}: not UTF-8 ({error.reason})") from None
        except (OSError, EOFError, zlib.error) as error:
            raise UsageError(f"{name}: cannot be read past line {number} ({error})") from None


def train_tokenizer(
    texts: Callable[[], Iterator[str]], vocab_size: int, length: int
) -> PreTrainedTokenizerBase:
    """BERT's lower-case tokenizer with a WordPiece vocabulary learnt from `texts()`, read twice."""
    normalizer = normalizers.BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    room = min(_ALPHABET, (vocab_size - len(SPECIAL)) // 2)
    alphabet = sorted(letters, key=lambda letter: (-counts[letter], letter))[:room]
    # The trainer numbers what it was not given in the order of a hash table, and breaks ties by
    # number: with every letter given, in both its forms, the same text gives the same vocabulary.
    given = [*SPECIAL, *alphabet, *(f"##{letter}" for letter in alphabet)]
    learner = _tokenizer(models.WordPiece(unk_token="[UNK]"), normalizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=given,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    learner.train_from_iterator(texts(), trainer)
    vocabulary = learner.get_vocab()
    backend = _tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"), normalizer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return BertTokenizer(tokenizer_object=backend, model_max_length=length)


def _tokenizer(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Any:
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def pack(
    files: Sequence[str], tokenizer: PreTrainedTokenizerBase, folder: Path, share: float
) -> dict[str, Any]:
    """Writes train.u16 and held_out.u16 to `folder` and returns their counts."""
    counts: dict[str, Any] = {}
    for name, held_out in (("train", False), ("held_out", True)):
        n_documents, n_tokens = 0, 0
        path = packed_file(folder, name)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            for ids in _encoded(documents(files, held_out, share), tokenizer):
                # [SEP] after each document, so that a window across two of them shows the seam.
                file.write(np.asarray([*ids, SPECIAL.index("[SEP]")], np.uint16).tobytes())
                n_documents, n_tokens = n_documents + 1, n_tokens + len(ids) + 1
        os.replace(partial, path)
        counts |= {f"{name}_documents": n_documents, f"{name}_tokens": n_tokens}
    return counts


def packed_file(folder: Path, name: str) -> Path:
    """Where the packed tokens of `train` or `held_out` lie: document, [SEP], document, [SEP]."""
    return folder / f"{name}.u16"


def _encoded(texts: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    while some := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for encoding in tokenizer.backend_tokenizer.encode_batch(some, add_special_tokens=False):
            yield encoding.ids


class Windows:
    """Stretches of a packed file, each [CLS] + length - 2 tokens + [SEP], read from disk."""

    def __init__(self, path: Path, length: int) -> None:
        size = path.stat().st_size // 2
        self.tokens: NDArray[np.uint16] = np.empty(0, np.uint16)
        if size:  # an empty file cannot be mapped
            self.tokens = np.memmap(path, np.uint16, "r", shape=(size,))
        self.length = length
        self.stride = length - 2
        self.count = max(0, (size - self.stride) // self.stride)

    def read(self, ids: NDArray[np.int64], shift: int = 0) -> NDArray[np.int64]:
        """[B, L] windows by number, moved on by `shift` tokens (below the stride)."""
        starts_B = ids * self.stride + shift
        rows_BL = np.empty((len(ids), self.length), np.int64)
        rows_BL[:, 1:-1] = self.tokens[starts_B[:, None] + np.arange(self.stride)]
        rows_BL[:, 0] = SPECIAL.index("[CLS]")
        rows_BL[:, -1] = SPECIAL.index("[SEP]")
        return rows_BL

    def evenly(self, count: int) -> NDArray[np.int64]:
        """The numbers of at most `count` windows from all over the file."""
        return np.unique(np.linspace(0, self.count - 1, min(count, self.count)).astype(np.int64))


class Shuffled:
    """Training batches, each a function of (seed, step) alone, so that resuming needs no state."""

    def __init__(self, windows: Windows, batch_size: int, seed: int) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = windows.count // batch_size
        self._epoch = -1

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The window numbers [B], the windows [B, L] and the epoch of a step."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            # Another shift each epoch, so that the windows' borders move.
            self._shift = int(random.integers(self.windows.stride))
            self._order = random.permutation(self.windows.count)
            self._epoch = epoch
        ids_B = self._order[i * self.batch_size : (i + 1) * self.batch_size]
        return ids_B, self.windows.read(ids_B, self._shift), epoch
