"""Writes files completely or not at all: under another name first, then renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError


def make(folder: Path) -> None:
    """Makes a folder and those above it; UsageError if that is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made a folder ({error.strerror})") from None


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """A path next to `path` to write a file or a folder to; afterwards it is renamed to `path`.

    If an error is raised inside the `with` block, what was written is removed and `path` stays as
    it was. A partial file or folder that an earlier, killed process left there is removed first.
    """
    partial = path.with_name(f".{path.name}.partial")
    _remove(partial)
    try:
        yield partial
        if partial.is_dir():
            _remove(path)  # a folder cannot be renamed over another one
        os.replace(partial, path)
    finally:
        _remove(partial)


def write(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, completely or not at all."""
    with replaced_when_complete(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, completely or not at all."""
    write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
