"""Local files to columns of text: CSV, TSV, JSONL, Parquet, folders; errors name the line.

Read here rather than by a data frame library, whose errors name neither file nor line and whose
type guessing turns the label "01" into 1 and the text "NA" into nothing.
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
from masktuning.config.installed import import_datasets

logger = logging.getLogger(__name__)

# The delimiter, where there is one.
SUFFIXES = {".csv": ",", ".tsv": "\t", ".jsonl": None, ".parquet": None}


class HubUnreachable(UsageError):
    """No connection to the hub, and the data set is not in its cache."""


@dataclass(frozen=True)
class Table:
    """Columns of one file, all as text, and where each row was."""

    origin: str
    columns: dict[str, list[str]]
    lines: list[int]
    """The line (or row, for Parquet and the hub) of each row, for error messages."""
    nested: dict[str, int] = field(default_factory=dict)
    """Columns that hold a list or a mapping, and so are no text, with its line."""

    def column(self, name: str) -> list[str]:
        """One column.

        Raises:
            UsageError: listing the columns there are.
        """
        if name in self.nested:
            where = f"{self.origin}, line {self.nested[name]}"
            raise UsageError(f"{where}: {name!r} is not a text or a number")
        if name not in self.columns:
            raise UsageError(
                f"{self.origin}: no column {name!r}; it has {', '.join(map(repr, self.columns))}; "
                "for files of your own see --text_column_names and --label_column_name"
            )
        return self.columns[name]


def read_table(
    path: str | Path,
    quoting: str = "csv",
    format: str = "",
    skip_broken_rows: bool = False,
    folders: Sequence[str] = (),
) -> Table:
    """The rows of a file, read as its ending or `format` says.

    `quoting` "none" takes quotes as they stand. A folder is read as one folder a label, each with
    one text a file, into the columns "text" and "label"; of several only those named `folders`.

    Raises:
        UsageError: if the file is missing, empty, not UTF-8, of an unknown kind, or broken,
            naming the line.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path, folders)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    suffix = f".{format}" if format else path.suffix
    if suffix not in SUFFIXES:
        raise UsageError(f"{path}: unknown ending; use one of {', '.join(SUFFIXES)}")
    delimiter = SUFFIXES[suffix]
    if suffix == ".parquet":
        table = _from_rows(path, _parquet_rows(path))
    elif delimiter is None:
        table = _from_rows(path, _json_rows(path, _decode(path)))
    else:
        rows = _csv_rows(path, _decode(path), delimiter, quoting, skip_broken_rows)
        table = _from_rows(path, rows)
    if not table.lines:
        raise UsageError(f"{path}: empty, there is no example in it")
    return table


def read_hub(
    id: str,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    columns: dict[str, str] | None = None,
) -> Table:
    """The rows of one split of a data set on the hub (or a local folder that looks like one).

    Class labels become their names; `columns` renames columns.

    Raises:
        UsageError: if it cannot be had, with the library's reason, or without `datasets`.
    """
    datasets = import_datasets()
    try:
        rows = datasets.load_dataset(id, config, split=split, revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        kind = HubUnreachable if isinstance(error, ConnectionError) else UsageError
        raise kind(
            f"the data set {id} ({split}) cannot be read: {type(error).__name__}: {reason}"
        ) from None
    found = {}
    for name, feature in rows.features.items():
        named = isinstance(feature, datasets.ClassLabel)
        found[(columns or {}).get(name, name)] = [
            feature.int2str(value) if named and value >= 0 else _as_text(value)
            for value in rows[name]
        ]
    return Table(f"{id} ({split})", found, list(range(1, len(rows) + 1)))


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
            continue  # such as reviews without a label
        columns["text"].append(_decode(file))
        columns["label"].append(file.parent.name)
    if not columns["text"]:
        raise UsageError(f"{path}: no text files in folders named by their label")
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


def _csv_rows(
    path: Path, text: str, delimiter: str, quoting: str, skip_broken_rows: bool
) -> Iterator[tuple[int, dict[str, str | None]]]:
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
    skipped: list[int] = []
    cut = not text.endswith("\n") and text.count("\n") + 1  # a last line without its end
    try:
        for row in reader:
            if header is None:
                header = row
                if len(set(row)) < len(row):
                    raise UsageError(f"{path}: a column name is there twice: {', '.join(row)}")
            elif row:  # a blank line is no row
                if len(row) != len(header) and skip_broken_rows and start != cut:
                    skipped.append(start)
                elif len(row) != len(header):
                    raise UsageError(
                        f"{path}, line {start}: {len(row)} fields where the header has "
                        f"{len(header)} ({', '.join(header)})"
                    )
                else:
                    yield start, dict(zip(header, row, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{path}: the row that starts at line {start} has broken quoting ({error}); "
            'write a quote inside a quoted field as "", or describe the file in a task\'s YAML '
            "with `quoting: none`"
        ) from None
    if skipped:
        lines = ", ".join(map(str, skipped))
        logger.warning("%s: left out lines with fields too few or too many: %s", path, lines)


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Rows in which a list or a mapping is None: a column of notes, which nobody asks for."""
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
        except (ValueError, RecursionError) as error:  # too deep, or a number too long
            reason = getattr(error, "msg", one_line(error))
            raise UsageError(f"{path}, line {number}: not JSON ({reason})") from None
        if not isinstance(row, dict):
            raise UsageError(f"{path}, line {number}: not a JSON object of column names to values")
        yield (
            number,
            {k: None if isinstance(v, list | dict) else _as_text(v) for k, v in row.items()},
        )


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    import pyarrow.lib
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.lib.ArrowInvalid) as error:
        raise UsageError(f"{path}: not a Parquet file ({error})") from None
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {name: _as_text(value) for name, value in row.items()}


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)
