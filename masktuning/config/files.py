"""Writes files completely or not at all: under another name first, then renamed."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError

_A_DAY = 86400.0  # seconds; no file takes that long to write


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
    it was. Several processes may write the same file at once: each replaces it whole. What a
    killed process left incomplete is removed once it is a day old.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with suppress(FileNotFoundError):  # another process has just renamed or removed it
            if time.time() - left.stat().st_mtime > _A_DAY:
                _remove(left)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
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
