"""Files that are written whole: first next to their place, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError


def make(folder: Path) -> None:
    """Makes a folder for results; UsageError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made a folder ({error.strerror})") from None


def write(path: Path, text: str) -> None:
    """Writes a file whole: beside its place, then renamed."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
