"""Tokenisation; the result is cached on disk under a hash of everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from masktuning.config.installed import import_datasets, version_of
from masktuning.data.load import LabelledTexts

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

    from datasets import Dataset

logger = logging.getLogger(__name__)

_ENCODING_VERSION = "1"  # to be raised when `encode_all` returns other columns for the same texts


class EncodedSet(NamedTuple):
    """The texts of one set and their tokenised rows, in the same order."""

    texts: LabelledTexts
    data: Dataset


def encode(
    texts: LabelledTexts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
) -> Dataset:
    """The tokenised rows of one set; see `encode_all`."""
    return encode_all([texts], tokenizer, max_length, num_proc)[0].data


def encode_all(
    sets: Sequence[LabelledTexts],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None = None,
    overwrite: bool = False,
) -> list[EncodedSet]:
    """Tokenised rows of at most `max_length` tokens, with `labels`, `example_id` and `truncated`.

    `example_id` is the number of the row in the set, from 0; `truncated` says whether its text was
    too long. The rows are cached in the folder of `datasets` under a hash of texts, labels,
    tokenizer and length, so that the same texts are tokenised once; with `overwrite` they
    are tokenised again. `num_proc` processes tokenise.

    Raises:
        UsageError: if the package `datasets` is not installed.
    """
    datasets = import_datasets()
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "masktuning"
    cache.mkdir(parents=True, exist_ok=True)
    settings = _hash_of_settings(tokenizer, max_length)
    encoded = []
    for texts in sets:
        key = _key(settings, texts)
        path = cache / f"{key}.arrow"
        if path.is_file() and datasets.is_caching_enabled() and not overwrite:
            data = datasets.Dataset.from_file(str(path))
        else:
            data = _tokenise(texts, tokenizer, max_length, num_proc, path, overwrite)
        if truncated := sum(data["truncated"][:]):
            logger.warning(
                "%s: %d of %d texts are longer than %d tokens and were truncated",
                texts.name,
                truncated,
                len(texts),
                max_length,
            )
        encoded.append(EncodedSet(texts, data))
    return encoded


def _tokenise(
    texts: LabelledTexts,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_proc: int | None,
    path: Path,
    overwrite: bool,
) -> Dataset:
    """The rows of a set, written to `path` or, by several processes, to files named after it."""
    rows = {f"text_{i}": column for i, column in enumerate(texts.texts)}
    dataset = import_datasets().Dataset.from_dict(
        {**rows, "labels": texts.labels, "example_id": list(range(len(texts)))}
    )

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = [batch[name] for name in rows]
        encoded = tokenizer(*columns, truncation=True, max_length=max_length)
        if tokenizer.is_fast:
            cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        else:
            cut = [len(ids) > max_length for ids in tokenizer(*columns, verbose=False)["input_ids"]]
        return {**encoded, "truncated": cut}

    return dataset.map(
        tokenize,
        batched=True,
        num_proc=num_proc,
        remove_columns=list(rows),
        cache_file_name=str(path),
        load_from_cache_file=False if overwrite else None,
        new_fingerprint=path.stem,
        desc=f"Tokenising {texts.name}",
    )


def length_limit(encoder: nn.Module, config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest number of tokens per text that the tokenizer and the encoder allow."""
    limit = tokenizer.model_max_length  # a huge number if the tokenizer does not know its limit
    limit = min(limit, getattr(config, "max_position_embeddings", None) or limit)
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa numbers positions from its padding index + 1 on.
            skipped = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = min(limit, module.num_embeddings - skipped)
    return limit


def _hash_of_settings(tokenizer: Any, max_length: int) -> Hash:
    """The part of the keys that is the same for all sets, and costs more than the rest."""
    if tokenizer.is_fast:
        # Truncation and padding are as the last call left them, and tokenising sets its own.
        settings = json.loads(tokenizer.backend_tokenizer.to_str())
        settings |= {"truncation": None, "padding": None}
    else:
        settings = {"vocabulary": tokenizer.get_vocab(), "init": repr(tokenizer.init_kwargs)}
    settings["class"] = type(tokenizer).__name__
    settings["inputs"] = [tokenizer.model_input_names, tokenizer.truncation_side, max_length]
    settings["versions"] = [version_of(name) for name in ("tokenizers", "transformers")]
    digest = hashlib.sha256()
    for part in (_ENCODING_VERSION, json.dumps(settings)):
        digest.update(part.encode() + b"\0")
    return digest


def _key(settings: Hash, texts: LabelledTexts) -> str:
    """A hash of everything that the tokenised rows of a set depend on."""
    digest = settings.copy()
    for column in texts.texts:
        digest.update("\0".join(column).encode("utf-8", "surrogatepass") + b"\1")
    digest.update(",".join(map(str, texts.labels)).encode())
    return digest.hexdigest()[:32]
