"""Rows of a file one after the other, for files that need not fit into memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from masktuning.config.errors import UsageError
from masktuning.data.readers import SUFFIXES, csv_fields, json_row, json_value

_FIELD_LIMIT = 2**24  # characters of one CSV field; csv's own limit is shorter than some texts


@dataclass
class RowStream:
    """The rows of a CSV, TSV, JSON Lines or Parquet file, in their order.

    Attributes:
        path: the file.
        columns: the names of its columns.
        total: how much there is to read: bytes of a text file, rows of a Parquet file.
        rows: an iterator over pairs of a line (the row's number for Parquet), from 1, and the
            row's values by column, as they are in the file.
        read: how much of `total` has been read.
    """

    path: Path
    columns: list[str]
    total: int
    rows: Iterator[tuple[int, dict[str, Any]]]
    read: Callable[[], int] = field(default=lambda: 0)


@contextmanager
def open_rows(path: Path) -> Iterator[RowStream]:
    """Opens a file for reading its rows.

    Raises:
        UsageError: if the file is missing, empty or of an unknown kind, and, while it is read, for
            a row that is broken or not UTF-8; the message names the line.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix not in SUFFIXES or path.suffix == ".json":
        kinds = ", ".join(one for one in SUFFIXES if one != ".json")
        raise UsageError(f"{path}: cannot be read row by row; use one of {kinds}")
    if path.suffix == ".parquet":
        yield _parquet(path)
        return
    with path.open("rb") as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            rows = _json_lines(path, file)
        else:
            rows = _csv_rows(path, file, str(SUFFIXES[path.suffix]))
        rows = _decoded(path, rows)
        first = next(rows, None)
        if first is None:
            raise UsageError(f"{path}: empty, there is no text in it")
        columns = [*first[1]]
        # The byte after the block that is being decoded; a progress bar needs no more.
        yield RowStream(path, columns, path.stat().st_size, _again(first, rows), raw.tell)


def _again(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _decoded(path: Path, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """The rows; text that is not UTF-8 is a UsageError."""
    line = 0
    try:
        for line, row in rows:
            yield line, row
    except UnicodeDecodeError:
        raise UsageError(f"{path}, after line {line}: not UTF-8; save the file as UTF-8") from None


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    columns: set[str] = set()
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        row = json_row(path, number, json_value(path, number, line))
        columns = columns or set(row)
        if row.keys() != columns:
            raise UsageError(
                f"{path}, line {number}: has {', '.join(row)}, the first row {', '.join(columns)}"
            )
        yield number, row


def _csv_rows(path: Path, file: IO[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    numbered = csv_fields(path, csv.reader(file, delimiter=delimiter, strict=True))
    _, header = next(numbered, (0, []))
    if len(set(header)) < len(header):
        raise UsageError(f"{path}: two columns have the same name: {', '.join(header)}")
    for line, row in numbered:
        if not row:
            continue  # a blank line
        if len(row) != len(header):
            raise UsageError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)} "
                f"({', '.join(header)})"
            )
        yield line, dict(zip(header, row, strict=True))


def _parquet(path: Path) -> RowStream:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.lib.ArrowInvalid) as error:
        raise UsageError(f"{path}: not a Parquet file ({error})") from None
    count = 0

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        nonlocal count
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                count += 1
                yield count, row

    if not file.metadata.num_rows:
        raise UsageError(f"{path}: empty, there is no text in it")
    return RowStream(path, file.schema_arrow.names, file.metadata.num_rows, rows(), lambda: count)
