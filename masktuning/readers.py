"""Local files to columns of text: CSV, TSV, JSONL, Parquet, with errors that name the line.

Read here rather than by a data frame library, whose errors name neither file nor line and whose
type guessing turns the label "01" into 1 and the text "NA" into nothing.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masktuning.config import UsageError

# The delimiter, where there is one.
SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".parquet": None}


@dataclass(frozen=True)
class Table:
    """Columns of one file, all as text, and where each row was."""

    origin: str
    columns: dict[str, list[str]]
    lines: list[int]
    """The line (or row, for Parquet and the hub) of each row, for error messages."""

    def column(self, name: str) -> list[str]:
        """One column.

        Raises:
            UsageError: listing the columns there are.
        """
        if name not in self.columns:
            raise UsageError(
                f"{self.origin}: no column {name!r}; it has {', '.join(map(repr, self.columns))}; "
                "for files of your own see --text_column_names and --label_column_name"
            )
        return self.columns[name]


def read_table(path: str | Path, quoting: str = "csv") -> Table:
    """The rows of a file, chosen by its ending; `quoting` "none" takes quotes as they stand.

    Raises:
        UsageError: if the file is missing, empty, not UTF-8, of an unknown kind, or broken,
            naming the line.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown ending; use one of {', '.join(SUFFIXES)}")
    if path.suffix == ".parquet":
        table = _from_rows(path, _parquet_rows(path))
    else:
        text = _decode(path)
        delimiter = SUFFIXES[path.suffix]
        rows = (
            _json_rows(path, text)
            if delimiter is None
            else _csv_rows(path, text, delimiter, quoting)
        )
        table = _from_rows(path, rows)
    if not table.lines:
        raise UsageError(f"{path}: empty, there is no example in it")
    return table


def read_hub(id: str, split: str, config: str | None = None, revision: str | None = None) -> Table:
    """The rows of one split of a data set on the hub (or a local folder that looks like one).

    Class labels become their names.

    Raises:
        UsageError: if it cannot be had, with the library's reason.
    """
    import datasets

    try:
        rows = datasets.load_dataset(id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(
            f"the data set {id} ({split}) cannot be read: {type(error).__name__}: {reason}"
        ) from None
    columns = {}
    for name, feature in rows.features.items():
        named = isinstance(feature, datasets.ClassLabel)
        columns[name] = [
            feature.int2str(value) if named and value >= 0 else _as_text(value)
            for value in rows[name]
        ]
    return Table(f"{id} ({split})", columns, list(range(1, len(rows) + 1)))


def _decode(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _from_rows(path: Path, rows: Iterator[tuple[int, dict[str, str]]]) -> Table:
    columns: dict[str, list[str]] = {}
    lines: list[int] = []
    for line, row in rows:
        if not lines:
            columns = {name: [] for name in row}
        if row.keys() != columns.keys():
            raise UsageError(
                f"{path}, line {line}: has {', '.join(row)}, the first row {', '.join(columns)}"
            )
        lines.append(line)
        for name, value in row.items():
            columns[name].append(value)
    return Table(str(path), columns, lines)


def _csv_rows(
    path: Path, text: str, delimiter: str, quoting: str
) -> Iterator[tuple[int, dict[str, str]]]:
    # A review may be longer than the module's limit, which is the whole process's.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if quoting == "none" else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] | None = None
    start = 1
    try:
        for row in reader:
            if header is None:
                header = row
                if len(set(row)) < len(row):
                    raise UsageError(f"{path}: a column name is there twice: {', '.join(row)}")
            elif row:  # a blank line is no row
                if len(row) != len(header):
                    raise UsageError(
                        f"{path}, line {start}: {len(row)} fields where the header has "
                        f"{len(header)} ({', '.join(header)})"
                    )
                yield start, dict(zip(header, row, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}: the row that starts at line {start} has broken quoting ({error}); "
            'write a quote inside a quoted field as "", or describe the file in a task\'s YAML '
            "with `quoting: none`"
        ) from None


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: not a JSON object of column names to values")
        nested = [name for name, value in row.items() if isinstance(value, list | dict)]
        if nested:
            raise UsageError(f"{path}, line {number}: {nested[0]!r} is not a text or a number")
        yield number, {name: _as_text(value) for name, value in row.items()}


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.lib.ArrowInvalid as error:
        raise UsageError(f"{path}: not a Parquet file ({error})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {name: _as_text(value) for name, value in row.items()}


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)
