"""What the figures of a study depend on: versions, code, texts, model and flags."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import masktuning
from masktuning.config.version import __version__
from masktuning.data.load import LabelledTexts
from masktuning.training.job import TrainingJob

_ABOVE = ("experiments", "demo", "csrc", "kernels")
"""Folders that no run depends on: those above training, and links to sources outside."""
_PLACES = {"output_dir", "data_dir", "train_file", "validation_file", "config"}
_DIGITS = 12


def identity_of(job: TrainingJob, texts: list[LabelledTexts], flags: list[str]) -> dict[str, Any]:
    """The identity of a study, which two machines share whose files lie in different places.

    Args:
        job: one of the runs; all of them have the same texts and the same model.
        texts: the texts of its sets.
        flags: the words of the command line that every run gets.
    """
    return {
        "masktuning": __version__,
        "code": _hash(_sources()),
        "torch": _release("torch"),
        "transformers": _release("transformers"),
        "model": _model(job),
        "texts": {one.name: _of_texts(one) for one in texts},
        "settings": job.task.settings_of(job.data.preset),
        "flags": _flags(flags),
    }


def digest(identity: dict[str, Any]) -> str:
    """A short name of an identity."""
    return _hash([json.dumps(identity, sort_keys=True).encode()])


def _sources() -> Iterable[bytes]:
    """The Python code that a run executes: all of the package below `experiments`."""
    root = Path(masktuning.__path__[0])
    for path in sorted(root.glob("*/**/*.py")):
        if path.relative_to(root).parts[0] not in _ABOVE:
            yield path.relative_to(root).as_posix().encode()
            yield path.read_bytes()


def _model(job: TrainingJob) -> str:
    """The hash of the weights of a checkpoint folder; the name of a model on the hub."""
    source = job.model.model_name_or_path or str(job.embedded)
    folder = Path(source)
    if not folder.is_dir():
        return f"{source}@{job.model.model_revision}" if job.model.model_revision else source
    found = [*sorted(folder.glob("*.safetensors")), *sorted(folder.glob("*.bin"))]
    total = hashlib.sha256()
    for path in found:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return f"{folder.name} {total.hexdigest()[:_DIGITS]}"


def _of_texts(texts: LabelledTexts) -> str:
    """The number of rows of a set, and the hash of its texts and labels."""
    content = json.dumps([texts.texts, texts.labels], ensure_ascii=False)
    return f"{len(texts)} rows {_hash([content.encode()])}"


def _flags(words: list[str]) -> list[str]:
    """The flags without those that say where files lie; each is one word, with its values."""
    found: list[str] = []
    for word in words:
        if word.startswith("--"):
            found.append(word)
        elif found:
            found[-1] += f" {word}"
    places = _PLACES | {"model_name_or_path", "tokenizer_name", "eval_files", "test_file"}
    return sorted(one for one in found if one[2:].replace("=", " ").split()[0] not in places)


def _release(package: str) -> str:
    """The version of a package without the name of its build: 2.13.0 for 2.13.0+cu128."""
    return metadata.version(package).partition("+")[0]


def _hash(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:_DIGITS]
