"""A file that is written in pieces, and goes on after a kill where its last whole piece ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json


class PartialOutput:
    """A context manager; what it writes gets the output's name with `finish`.

    Until then it is in `.NAME.partial`, and `.NAME.state.json` says how many rows and bytes of it
    are whole.

    Args:
        path: the output.
        identity: what it is made of and with. A partial file that was begun with something else is
            an error.

    Raises:
        UsageError: for such a partial file.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.output = path
        self.path = path.with_name(f".{path.name}.partial")
        self.state = path.with_name(f".{path.name}.state.json")
        self.identity = identity
        self.rows, self._length = self._earlier()

    def __enter__(self) -> PartialOutput:
        self._file = self.path.open("ab")
        self._file.truncate(self._length)  # without what followed the last whole piece
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def append(self, text: str, rows: int) -> None:
        """Writes a piece of so many rows, and records it once it is on the disk."""
        self._file.write(text.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += rows
        self._length += len(text.encode())
        state = {"identity": self.identity, "rows": self.rows, "bytes": self._length}
        write_json(self.state, state)

    def finish(self) -> None:
        """Gives the complete output its name."""
        self._file.close()
        os.replace(self.path, self.output)
        self.state.unlink()

    def _earlier(self) -> tuple[int, int]:
        """The rows and bytes that an earlier run left."""
        if not (self.path.is_file() and self.state.is_file()):
            return 0, 0
        state = json.loads(self.state.read_text(encoding="utf-8"))
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise UsageError(
                    f"{self.path} was begun with another {name}: remove it, or give another "
                    "--output_file"
                )
        return int(state["rows"]), int(state["bytes"])
