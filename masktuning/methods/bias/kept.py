"""Keeps tables that take long to compute in a folder; a table has one row per training example.

Shapes: N examples, C classes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from masktuning.config.files import make, replaced_when_complete
from masktuning.data.example_ids import column

_NEEDED = ("input_ids", "token_type_ids", "labels", "example_id")
_TABLE = "table"


def plain_rows(train: Any) -> list[dict[str, Any]]:
    """The token ids, labels and example ids of a training set, read column by column."""
    present = train[0].keys()
    found = {name: column(train, name) for name in _NEEDED if name in present}
    if "labels" not in found:
        found["labels"] = column(train, "label")
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def key_of(rows: Sequence[Mapping[str, Any]], *parts: Any) -> str:
    """A hash of training rows and of what else a table depends on: texts, numbers and tensors."""
    digest = hashlib.sha256()
    for part in parts:
        is_tensor = isinstance(part, Tensor)
        content = part.detach().cpu().numpy().tobytes() if is_tensor else repr(part).encode()
        digest.update(content + b"\0")
    for row in rows:
        digest.update(json.dumps([row[name] for name in _NEEDED if name in row]).encode())
    return digest.hexdigest()[:16]


def kept_table(
    cache: Path | None, name: str, key: str, compute: Callable[[], np.ndarray]
) -> list[list[float]]:
    """The table [N, C] that was kept under this name and key, or else that which is computed.

    Args:
        cache: the folder, made if it is missing; None keeps nothing.
        name: what the file's name begins with.
        key: what `key_of` returned.
        compute: computes the table [N, C], float32 or float64.
    """
    if cache is None:
        return compute().tolist()
    path = Path(cache) / f"{name}-{key}.safetensors"
    if not path.is_file():
        make(path.parent)
        with replaced_when_complete(path) as partial:
            save_file({_TABLE: torch.from_numpy(compute())}, partial)
    return load_file(path)[_TABLE].tolist()
