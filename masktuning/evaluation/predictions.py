"""The predicted labels of a set as a file of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from masktuning.config.files import write


def predictions_path(folder: Path, name: str) -> Path:
    """Where the predictions of the set `name` are."""
    return folder / f"predictions_{name}.jsonl"


def write_predictions(
    folder: Path, name: str, label_ids: Iterable[int], labels: Sequence[str]
) -> Path:
    """Writes a line {"example_id": i, "label": name} for each row, in the order of the set."""
    lines = [json.dumps({"example_id": i, "label": labels[k]}) for i, k in enumerate(label_ids)]
    path = predictions_path(folder, name)
    write(path, "\n".join(lines) + "\n")
    return path
