"""Reads CSV, TSV, JSON and Parquet files, and folders of text files, into columns of text.

Files are read here rather than by a data frame library, whose errors name neither file nor line
and whose type guessing turns the label "01" into 1 and the text "NA" into a missing value.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError, one_line

logger = logging.getLogger(__name__)

# The file extensions that can be read, and the delimiter where there is one.
SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".json": None, ".parquet": None}


@dataclass(frozen=True)
class Table:
    """The columns of one source, all as text, and where each row stands in it."""

    origin: str
    """The path, or the data set's id and split, for error messages."""
    columns: dict[str, list[str]]
    lines: list[int]
    """The line of each row (its number for Parquet and the hub), from 1, for error messages."""
    nested: dict[str, int] = field(default_factory=dict)
    """For each column that holds a list or a mapping, the first line where it does."""

    def column(self, name: str) -> list[str]:
        """The texts of one column.

        Raises:
            UsageError: if there is no such column, listing those there are; if it is not text.
        """
        if name in self.nested:
            where = f"{self.origin}, line {self.nested[name]}"
            raise UsageError(f"{where}: {name!r} is not a text or a number")
        if name not in self.columns:
            raise UsageError(
                f"{self.origin}: no column {name!r}; it has {', '.join(map(repr, self.columns))}; "
                "for your own files see --text_column_names and --label_column_name"
            )
        return self.columns[name]


def read_table(
    path: str | Path,
    quoting: str = "csv",
    format: str = "",
    skip_broken_rows: bool = False,
    folders: Sequence[str] = (),
) -> Table:
    """The rows of a file, whose kind `format` names, or its extension if `format` is empty.

    With `quoting` "none" quotation marks are ordinary characters. A folder must hold one folder
    per label with one .txt file per text; it gives the columns "text" and "label". If `folders`
    are given, only the folders of these names are read.

    Raises:
        UsageError: if the file is missing, empty, not UTF-8, of an unknown kind, or broken; the
            message names the line.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, folders)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    suffix = f".{format}" if format else path.suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown extension; use one of {', '.join(SUFFIXES)}")
    delimiter = SUFFIXES[suffix]
    if suffix == ".parquet":
        table = _from_rows(path, _parquet_rows(path))
    elif delimiter is None:
        table = _from_rows(path, _json_rows(path, suffix, _decode(path)))
    else:
        table = _csv_table(path, _decode(path), delimiter, quoting, skip_broken_rows)
    if not table.lines:
        raise UsageError(f"{path}: empty, there is no example in it")
    return table


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _read_folder(path: Path, folders: Sequence[str]) -> Table:
    columns: dict[str, list[str]] = {"text": [], "label": []}
    for file in sorted(path.glob("*/*.txt")):
        if folders and file.parent.name not in folders:
            continue  # such as a folder of reviews without labels
        columns["text"].append(_decode(file))
        columns["label"].append(file.parent.name)
    if not columns["text"]:
        raise UsageError(f"{path}: no .txt files in folders named after the labels")
    return Table(str(path), columns, list(range(1, len(columns["text"]) + 1)))


def _from_rows(path: Path, rows: Iterator[tuple[int, dict[str, str | None]]]) -> Table:
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    nested: dict[str, int] = {}
    for line, row in rows:
        if not lines:
            columns = {name: [] for name in row}
        if row.keys() != columns.keys():
            raise UsageError(
                f"{path}, line {line}: has {', '.join(row)}, the first row {', '.join(columns)}"
            )
        lines.append(line)
        for name, value in row.items():
            columns[name].append(value or "")
            if value is None:
                nested.setdefault(name, line)
    return Table(str(path), columns, lines, nested)


def _csv_table(
    path: Path, text: str, delimiter: str, quoting: str, skip_broken_rows: bool
) -> Table:
    # A field may be longer than the default limit, which holds for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    # A last line without a line end is where an interrupted download ends: it is never skipped.
    cut_off = -1 if text.endswith("\n") else text.count("\n") + 1
    numbered = csv_fields(path, reader)
    _, header = next(numbered, (0, []))
    if len(set(header)) < len(header):
        raise UsageError(f"{path}: two columns have the same name: {', '.join(header)}")
    columns: list[list[str]] = [[] for _ in header]
    lines: list[int] = []
    skipped: list[int] = []
    for line, row in numbered:
        if not row:
            continue  # a blank line
        if len(row) == len(header):
            lines.append(line)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        elif skip_broken_rows and line != cut_off:
            skipped.append(line)
        else:
            raise UsageError(
                f"{path}, line {line}: {len(row)} fields where the header has {len(header)} "
                f"({', '.join(header)})"
            )
    if skipped:
        listed = ", ".join(map(str, skipped))
        logger.warning("%s: skipped lines with too few or too many fields: %s", path, listed)
    return Table(str(path), dict(zip(header, columns, strict=True)), lines)


def csv_fields(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, and the line on which the row starts."""
    start = 1
    try:
        for row in reader:
            yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}: the row that starts at line {start} has broken quoting ({error}); "
            'write a quote inside a quoted field as "", or describe the file in a task\'s YAML '
            "with `quoting: none`"
        ) from None


def _json_rows(path: Path, suffix: str, text: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Each row and its line, or in a .json file that holds one list, its number in the list."""
    if suffix == ".json" and text.lstrip().startswith("["):
        for number, row in enumerate(json_value(path, 1, text), 1):
            yield number, as_texts(json_row(path, number, row))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, as_texts(json_row(path, number, json_value(path, number, line)))


def json_value(path: Path, number: int, text: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # an escape may stand for half a surrogate pair, which fails here
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # also nested too deep, a number too long
        number += getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", one_line(error))
        raise UsageError(f"{path}, line {number}: not JSON ({reason})") from None
    return value


def json_row(path: Path, number: int, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UsageError(f"{path}, line {number}: not a JSON object of column names to values")
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.lib.ArrowInvalid) as error:
        raise UsageError(f"{path}: not a Parquet file ({error})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, as_texts(row)


def as_texts(row: dict[str, Any]) -> dict[str, str | None]:
    """The values of a row as text; a list or a mapping, which is no text, becomes None."""
    return {k: None if isinstance(v, list | dict) else as_text(v) for k, v in row.items()}


def as_text(value: Any) -> str:
    """A value as text; a missing value, which may be a NaN, is the empty text.

    Raises:
        UsageError: for bytes that are not UTF-8.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"a value of bytes is no text: {error}") from None
    return "" if value is None or value != value else str(value)
