"""From a task's sets to tokenised data: sources, columns, label names, tokenisation."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, config
from torch import nn
from transformers import PreTrainedTokenizerBase

from masktuning.config import UsageError
from masktuning.demo.data import examples
from masktuning.labels import LabelNames
from masktuning.readers import Table, read_hub, read_table
from masktuning.tasks import SetSpec

logger = logging.getLogger(__name__)

_ENCODING_VERSION = "1"  # raised when `encode` would give other columns for the same texts


class SetNotFound(UsageError):
    """None of a set's sources is there; the message lists what was tried."""


@dataclass(frozen=True)
class LabelledTexts:
    """One set as read: its texts (one or two a row) and label ids, in the order of the source."""

    name: str
    role: str
    texts: list[list[str]]
    """One list a text column."""
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> LabelledTexts:
        """The first `count` rows, or all."""
        columns = [column[:count] for column in self.texts]
        return LabelledTexts(self.name, self.role, columns, self.labels[:count])


def load_set(spec: SetSpec, labels: list[str], data_dir: str | None) -> LabelledTexts:
    """Reads one set, labels mapped by name to their place in `labels`.

    Raises:
        SetNotFound: if no source has it.
        UsageError: on a missing column, an empty text or a label that is none of `labels`.
    """
    table = _read_source(spec, data_dir)
    texts = [_texts(table, column, spec.strip_breaks) for column in spec.text]
    names = LabelNames(labels)
    label_ids = []
    for line, raw in zip(table.lines, table.column(spec.label), strict=True):
        label = names.find(spec.label_names.get(raw, raw))
        if label is None:
            raise UsageError(
                f"{table.origin}, line {line}: label {raw!r} is none of {', '.join(labels)}"
            )
        label_ids.append(label)
    return LabelledTexts(spec.name, spec.role, texts, label_ids)


def load_texts(
    specs: list[SetSpec], labels: list[str], data_dir: str | None, required: bool = False
) -> list[LabelledTexts]:
    """Several sets; an out-of-distribution one that is not there is named and left out.

    Raises:
        UsageError: as `load_set`; for a missing out-of-distribution set only if `required`.
    """
    texts = []
    for spec in specs:
        try:
            texts.append(load_set(spec, labels, data_dir))
        except SetNotFound as error:
            if required or spec.role != "ood":
                raise
            logger.warning("left out: %s", error)
    return texts


def encode(
    texts: LabelledTexts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
) -> Dataset:
    """Tokenised rows with `labels`, `example_id` (the row as read) and `truncated`.

    Tokenised once: the result is kept in the datasets cache under a hash of texts, labels,
    tokenizer and length.
    """
    rows = {f"text_{i}": column for i, column in enumerate(texts.texts)}
    dataset = Dataset.from_dict(
        {**rows, "labels": texts.labels, "example_id": list(range(len(texts)))}
    )

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(*(batch[name] for name in rows), truncation=True, max_length=max_length)
        overflow = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return {**encoded, "truncated": overflow}

    cache = Path(config.HF_DATASETS_CACHE) / "masktuning"
    cache.mkdir(parents=True, exist_ok=True)
    key = _fingerprint(texts, tokenizer, max_length)
    encoded = dataset.map(
        tokenize,
        batched=True,
        num_proc=num_proc,
        remove_columns=list(rows),
        cache_file_name=str(cache / f"{key}.arrow"),
        new_fingerprint=key,
        desc=f"Tokenising {texts.name}",
    )
    cut = sum(encoded["truncated"])
    if cut:
        logger.warning(
            "%s: %d of %d texts are longer than %d tokens and were truncated",
            texts.name,
            cut,
            len(texts),
            max_length,
        )
    return encoded


def length_limit(encoder: nn.Module, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens the model takes, by its tokenizer, its configuration and its tables."""
    limit = tokenizer.model_max_length  # astronomically large where the tokenizer does not know
    limit = min(limit, getattr(config, "max_position_embeddings", None) or limit)
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts positions from its padding index on.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - skipped)
    return limit


def _fingerprint(texts: LabelledTexts, tokenizer: Any, max_length: int) -> str:
    digest = hashlib.sha256()
    # Truncation and padding are in there as the last call left them; ours is max_length.
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    settings |= {"truncation": None, "padding": None}
    settings["class"] = type(tokenizer).__name__
    settings["inputs"] = [tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    settings["versions"] = [version(name) for name in ("tokenizers", "transformers")]
    for part in (_ENCODING_VERSION, json.dumps(settings)):
        digest.update(part.encode() + b"\0")
    for column in texts.texts:
        digest.update("\0".join(column).encode("utf-8", "surrogatepass") + b"\1")
    digest.update(",".join(map(str, texts.labels)).encode())
    return digest.hexdigest()[:32]


def _read_source(spec: SetSpec, data_dir: str | None) -> Table:
    if spec.generated:
        texts, labels = examples(spec.generated)
        if len(texts[0]) != len(spec.text):
            raise UsageError(
                f"{spec.name}: generated set {spec.generated} has {len(texts[0])} text column(s)"
            )
        columns = {name: [text[i] for text in texts] for i, name in enumerate(spec.text)}
        columns[spec.label] = labels
        return Table(f"generated set {spec.generated}", columns, list(range(1, len(texts) + 1)))
    if data_dir is not None or not spec.hub:
        path = Path(data_dir or "") / spec.file
        if spec.home and not path.is_file():
            where = path if data_dir else f"--data_dir DIR with DIR/{spec.file}"
            raise SetNotFound(f"{spec.name}: not found: {where}; published at {spec.home}")
        return read_table(path, spec.quoting)
    try:
        return read_hub(**spec.hub)
    except UsageError as error:
        if not spec.home:
            raise
        raise SetNotFound(
            f"{spec.name}: {error}; give --data_dir DIR with DIR/{spec.file}, published at "
            f"{spec.home}"
        ) from None


def _texts(table: Table, column: str, strip_breaks: bool) -> list[str]:
    texts = table.column(column)
    for line, text in zip(table.lines, texts, strict=True):
        if not text.strip():
            raise UsageError(f"{table.origin}, line {line}: the text in {column!r} is empty")
    if strip_breaks:
        return [re.sub(r"\s*(<br\s*/?>?\s*)+", " ", text) for text in texts]
    return texts
