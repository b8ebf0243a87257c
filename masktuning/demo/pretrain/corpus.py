"""From text files to a WordPiece vocabulary and to token files that are read from disk.

A corpus file holds one document per line, and may be gzipped. Documents are held out for evaluation
by a hash of their text, so copies of a document are all held out or none. Held-out documents are
used neither for training nor for the vocabulary.

Shapes: B windows, L tokens.
"""

from __future__ import annotations

import gzip
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
from masktuning.config.files import replaced_when_complete

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ALPHABET = 200  # else the letters of rare scripts would fill much of a vocabulary of 8,192
_DOCUMENTS_AT_ONCE = 256


def check_files(files: Sequence[str]) -> None:
    """Raises UsageError if a corpus file is missing, is empty, or cannot be read from its start."""
    for name in files:
        if not Path(name).is_file():
            raise UsageError(f"{name}: no such corpus file")
        if next(_lines([name]), None) is None:
            raise UsageError(f"{name}: holds no text; give one document per line")


def documents(files: Sequence[str], held_out: bool, share: float) -> Iterator[str]:
    """The documents to train on, or with `held_out` the others, in the order of the files.

    `share` is the share of documents to hold out.

    Raises:
        UsageError: while iterating, on a line that cannot be read, with its number.
    """
    return (text for text in _lines(files) if is_held_out(text, share) == held_out)


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out for evaluation, by a hash of its text."""
    draw = int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
    return draw < share * 2**64


def _lines(files: Sequence[str]) -> Iterator[str]:
    """The lines that are not blank; UsageError on one that cannot be read, with its number."""
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
            raise UsageError(f"{name}: cannot be read after line {number} ({error})") from None


def train_tokenizer(
    texts: Callable[[], Iterator[str]], vocab_size: int, length: int
) -> PreTrainedTokenizerBase:
    """BERT's lower-case tokenizer with a WordPiece vocabulary learnt from `texts()`.

    `texts` is called twice. `vocab_size` is the most tokens that the vocabulary may have, `length`
    the most tokens of a text. The same texts give the same vocabulary.
    """
    normalizer = normalizers.BertNormalizer(lowercase=True)
    alphabet = _alphabet(texts(), normalizer, min(_ALPHABET, (vocab_size - len(SPECIAL)) // 2))
    # The trainer breaks ties by token id, and numbers tokens it was not given in the order of a
    # hash table. So it is given every letter, at the start of a word and within one.
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


def _alphabet(texts: Iterator[str], normalizer: Any, size: int) -> list[str]:
    """The `size` most frequent letters of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    letters = [letter for letter in counts if not letter.isspace()]
    return sorted(letters, key=lambda letter: (-counts[letter], letter))[:size]


def _tokenizer(model: models.WordPiece, normalizer: normalizers.Normalizer) -> Any:
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def pack(
    files: Sequence[str], tokenizer: PreTrainedTokenizerBase, folder: Path, share: float
) -> dict[str, Any]:
    """Writes train.u16 and held_out.u16 to `folder`; returns their counts of documents and tokens.

    `share` is the share of documents to hold out.
    """
    counts: dict[str, Any] = {}
    for name, held_out in (("train", False), ("held_out", True)):
        n_documents, n_tokens = 0, 0
        path = packed_file(folder, name)
        with replaced_when_complete(path) as partial, partial.open("wb") as file:
            for ids in _encoded(documents(files, held_out, share), tokenizer):
                # [SEP] after each document marks the boundary in a window across two of them.
                file.write(np.asarray([*ids, SPECIAL.index("[SEP]")], np.uint16).tobytes())
                n_documents, n_tokens = n_documents + 1, n_tokens + len(ids) + 1
        counts |= {f"{name}_documents": n_documents, f"{name}_tokens": n_tokens}
    return counts


def packed_file(folder: Path, name: str) -> Path:
    """The file of the tokens of `train` or `held_out`: document, [SEP], document, [SEP], ...

    Tokens are unsigned 16-bit integers.
    """
    return folder / f"{name}.u16"


def _encoded(texts: Iterator[str], tokenizer: Any) -> Iterator[list[int]]:
    while some := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for encoding in tokenizer.backend_tokenizer.encode_batch(some, add_special_tokens=False):
            yield encoding.ids


class Windows:
    """A packed file as windows of `length` tokens, read from disk.

    Each window is [CLS], length - 2 consecutive tokens of the file, [SEP]; windows do not overlap.
    """

    def __init__(self, path: Path, length: int) -> None:
        size = path.stat().st_size // 2
        self.tokens: NDArray[np.uint16] = np.empty(0, np.uint16)
        if size:  # an empty file cannot be mapped
            self.tokens = np.memmap(path, np.uint16, "r", shape=(size,))
        self.length = length
        self.stride = length - 2
        self.count = max(0, (size - self.stride) // self.stride)

    def read(self, ids: NDArray[np.int64], shift: int = 0) -> NDArray[np.int64]:
        """[B, L] the windows of the given numbers [B], starting `shift` tokens later in the file.

        `shift` must be less than the stride, length - 2.
        """
        starts_B = ids * self.stride + shift
        rows_BL = np.empty((len(ids), self.length), np.int64)
        rows_BL[:, 1:-1] = self.tokens[starts_B[:, None] + np.arange(self.stride)]
        rows_BL[:, 0] = SPECIAL.index("[CLS]")
        rows_BL[:, -1] = SPECIAL.index("[SEP]")
        return rows_BL

    def evenly(self, count: int) -> NDArray[np.int64]:
        """The numbers of at most `count` windows at equal distances over the whole file."""
        return np.unique(np.linspace(0, self.count - 1, min(count, self.count)).astype(np.int64))


class Shuffled:
    """Training batches in a random order that is another one in each epoch.

    A batch is a function of seed and step alone, so resuming needs no saved state.
    """

    def __init__(self, windows: Windows, batch_size: int, seed: int) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = windows.count // batch_size
        self._epoch = -1

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
        """The numbers [B] of a step's windows, the windows [B, L], and the epoch."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            random = np.random.default_rng([self.seed, epoch])
            # Each epoch has another shift, so that windows begin at other tokens.
            self._shift = int(random.integers(self.windows.stride))
            self._order = random.permutation(self.windows.count)
            self._epoch = epoch
        ids_B = self._order[i * self.batch_size : (i + 1) * self.batch_size]
        return ids_B, self.windows.read(ids_B, self._shift), epoch
