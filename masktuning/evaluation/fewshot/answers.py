"""A file of answers that were given already, so that no prompt is asked for twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError

FILE = "fewshot_answers.jsonl"


class AnswerFile:
    """Answers by their keys; each is a line of a file that is only ever appended to.

    Each line is written when its answer arrives, so whatever stops the process costs the last line
    at most. What stands after the last line break is the beginning of such a line: it is ignored,
    and removed before the next line is written.

    Args:
        path: the file, which need not exist; None keeps the answers in memory only.

    Raises:
        UsageError: if a line is not one of this file's.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._answers: dict[str, Any] = {}
        self._torn_at: int | None = None
        """Where the file has to be cut before a line is appended, if anywhere."""
        if path is not None and path.is_file():
            self._read(path)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Keeps an answer, and writes it to the file at once."""
        self._answers[key] = answer
        if self.path is None:
            return
        line = json.dumps({"key": key, "answer": answer}) + "\n"
        try:
            if self._torn_at is not None:
                os.truncate(self.path, self._torn_at)
                self._torn_at = None
            with self.path.open("ab") as file:
                file.write(line.encode())
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _read(self, path: Path) -> None:
        *lines, rest = path.read_bytes().split(b"\n")
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                self._answers[found["key"]] = found["answer"]
            except (ValueError, KeyError, TypeError):
                raise UsageError(
                    f"{path}, line {number}: not an answer of an earlier run; remove that line"
                ) from None
        if rest:
            self._torn_at = sum(len(line) + 1 for line in lines)
