"""What the figures of a study depend on: versions, code, texts, models and options.

Two machines whose files lie in different places have the same identity, since files count by their
content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import masktuning
from masktuning.config.version import __version__
from masktuning.data.load import LabelledTexts
from masktuning.modeling.checkpoint import PARTS
from masktuning.training.job import TrainingJob
from masktuning.training.run_folder import config_text

_ABOVE = ("experiments", "demo", "csrc", "kernels")
"""Folders that do not count: those that training does not import, and `csrc` and `kernels`, which
lie outside the package in a checkout."""
_OF_A_CELL = {"method", "seed", "output_dir"}
# The texts have hashes of their own, and the rest decides how a run is done and not what it finds.
_LEFT_OUT = {
    *("data_dir", "train_file", "validation_file", "eval_files", "dataset_name", "overwrite_cache"),
    *("preprocessing_num_workers", "dataloader_num_workers", "dataloader_pin_memory", "report_to"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "logging_dir", "run_name"),
    *("save_total_limit", "save_steps", "logging_steps", "disable_tqdm", "keep_optimizer_states"),
}
_DIGITS = 12


def identity_of(jobs: Mapping[str, TrainingJob], texts: list[LabelledTexts]) -> dict[str, Any]:
    """The identity of a study.

    Args:
        jobs: a run of each variant, by the name of the variant.
        texts: the texts of the sets, which all runs share.
    """
    return {
        "masktuning": __version__,
        "code": _hash(_sources()),
        "torch": _release("torch"),
        "transformers": _release("transformers"),
        "texts": {one.name: _of_texts(one) for one in texts},
        "variants": {name: _options(job) for name, job in jobs.items()},
    }


def digest(identity: Mapping[str, Any], variant: str) -> str:
    """A short name of what the runs of a variant depend on."""
    own = {**identity, "variants": identity["variants"][variant]}
    return _hash([json.dumps(own, sort_keys=True).encode()])


def _sources() -> Iterable[bytes]:
    """Names and contents of the Python files in the package's folders other than `_ABOVE`."""
    root = Path(masktuning.__path__[0])
    for path in sorted(root.glob("*/**/*.py")):
        if path.relative_to(root).parts[0] not in _ABOVE:
            yield path.relative_to(root).as_posix().encode()
            yield path.read_bytes()


def _options(job: TrainingJob) -> dict[str, Any]:
    """The options of a run as its config.yaml would have them, with files by their content."""
    options = yaml.safe_load(config_text(job))
    found = {
        name: _content(value)
        for name, value in options.items()
        if name not in _LEFT_OUT | _OF_A_CELL and value not in ([], None)
    }
    if "task" in options:  # a task of one's own counts by its settings and its texts
        found["task"] = Path(options["task"]).stem
    if "model_name_or_path" not in options:
        found["model_name_or_path"] = _content(str(job.embedded))
    return found


def _content(value: Any) -> Any:
    """A value, or the hash of the file or of the checkpoint folder that it names."""
    path = Path(value) if isinstance(value, str) and value else None
    if path is None or not path.is_absolute() or not path.exists():
        return value
    files = [path]
    if path.is_dir():
        patterns = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model")
        folders = [path, *(path / part for part in PARTS)]
        files = sorted(one for f in folders for pattern in patterns for one in f.glob(pattern))
    total = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix()
        with file.open("rb") as opened:
            total.update(name.encode() if path.is_dir() else b"")
            total.update(hashlib.file_digest(opened, "sha256").digest())
    return total.hexdigest()[:_DIGITS]


def _of_texts(texts: LabelledTexts) -> str:
    """The number of rows of a set, and the hash of its texts and labels."""
    content = json.dumps([texts.texts, texts.labels], ensure_ascii=False)
    return f"{len(texts)} rows {_hash([content.encode()])}"


def _release(package: str) -> str:
    """The version of a package without the name of its build: 2.13.0 for 2.13.0+cu128."""
    return metadata.version(package).partition("+")[0]


def _hash(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "little") + part)
    return total.hexdigest()[:_DIGITS]
