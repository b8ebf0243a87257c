"""Tasks made of the files or the hub data set that the user's flags name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments
from masktuning.data.hub import read_hub
from masktuning.data.labels import NO_REGRESSION, is_fraction
from masktuning.data.readers import Table, read_table
from masktuning.tasks import SetSpec, Task

# Names that text columns are looked for under, in this order.
_TEXT_COLUMNS = (
    ["sentence1", "sentence2"],
    ["premise", "hypothesis"],
    ["question1", "question2"],
    ["sentence"],
    ["text"],
)


def own_task(data: DataArguments, labels: list[str] | None = None) -> Task:
    """The task made of the files or the hub data set that the flags name.

    The columns and, unless `labels` are given, the label names are those of the first source.

    Raises:
        UsageError: if no source is given, a source or a column is missing, or an entry of
            --eval_files is not name=path.
    """
    sources = _sources(data)
    if not sources:
        raise UsageError(
            "no data: give --task, --dataset_name, or files (--train_file, --eval_files)"
        )
    first = next(iter(sources.values()))
    table = read_hub(**first["hub"]) if "hub" in first else read_table(first["file"])
    text = text_columns(data, table)
    label = data.label_column_name or "label"
    if labels is None:
        labels = _labels_of(table, label)
    sets = [
        SetSpec(name, name if name in ("train", "dev") else "ood", text, label, **source)
        for name, source in sources.items()
    ]
    return Task("own data", "the user's files or data set", labels, sets)


def text_columns(data: DataArguments, table: Table, usual: Sequence[str] = ()) -> list[str]:
    """The text columns that the flags name, or else the `usual` ones, or else those of `table`.

    Raises:
        UsageError: if there are none, and the table has none of the usual names.
    """
    given = named_columns(data.text_column_names)
    return given or [*usual] or guess_text_columns(table.origin, table.columns)


def with_eval_files(task: Task, data: DataArguments) -> Task:
    """`task` with the files of --eval_files as additional sets, out of distribution.

    They have the columns of the task's dev set unless the flags name others.

    Raises:
        UsageError: if an entry is not name=path, or the task already has a set of that name.
    """
    named = _parse_eval_files(data.eval_files, taken={spec.name for spec in task.sets})
    dev = task.with_role("dev")[0]
    own = [
        SetSpec(
            name,
            "ood",
            named_columns(data.text_column_names) or dev.text,
            data.label_column_name or dev.label,
            label_names=dev.label_names,
            file=_absolute(path),
            own_file=True,
        )
        for name, path in named.items()
    ]
    return replace(task, sets=[*task.sets, *own])


def _sources(data: DataArguments) -> dict[str, dict[str, Any]]:
    """The `file` or `hub` of each set by the set's name: train, dev, and those of --eval_files."""
    sources: dict[str, dict[str, Any]] = {}
    if data.dataset_name:
        hub = {"id": data.dataset_name, "config": data.dataset_config_name}
        for role, split in (("train", "train"), ("dev", "validation")):
            sources[role] = {"hub": {**hub, "split": split}}
    files = {"train": data.train_file, "dev": data.validation_file}
    sources |= {role: {"file": _absolute(path)} for role, path in files.items() if path}
    named = _parse_eval_files(data.eval_files, taken=set(files))
    return sources | {name: {"file": _absolute(path)} for name, path in named.items()}


def _absolute(path: str) -> str:
    """An absolute path, which --data_dir (the folder of a task's files) does not apply to."""
    return str(Path(path).absolute())


def _parse_eval_files(entries: list[str], taken: set[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (equals and path and re.fullmatch(r"\w+", name)):
            raise UsageError(f"--eval_files takes name=path, not {entry!r}")
        if name in taken | set(named) | {"test_file"}:
            raise UsageError(
                f"--eval_files {entry}: the name {name!r} is reserved or another set's; choose "
                f"another one, such as my_{name}={path}"
            )
        named[name] = path
    return named


def named_columns(names: str | None) -> list[str]:
    """The columns that --text_column_names gives, with commas between them.

    Raises:
        UsageError: for more than two.
    """
    found = [name.strip() for name in names.split(",")] if names else []
    if len(found) > 2:
        raise UsageError(f"--text_column_names {names}: a text has one column, and a pair two")
    return found


def guess_text_columns(origin: str, columns: Iterable[str]) -> list[str]:
    """Those of the columns of a source that have the usual names of texts.

    Raises:
        UsageError: if there are none.
    """
    there = list(columns)
    for names in _TEXT_COLUMNS:
        if all(name in there for name in names):
            return list(names)
    raise UsageError(
        f"{origin}: which column is the text? The columns are {', '.join(there)}; "
        "give --text_column_names NAME or NAME,NAME"
    )


def _labels_of(table: Table, column: str) -> list[str]:
    """The different labels of a table: first numbers by value, then other names by length.

    Raises:
        UsageError: if a label is empty or a number with a fraction, or there are fewer than two.
    """
    for line, value in zip(table.lines, table.column(column), strict=True):
        if not value.strip():
            raise UsageError(f"{table.origin}, line {line}: the label in {column!r} is empty")
        if is_fraction(value):
            raise UsageError(f"{table.origin}, line {line}: label {value!r}: {NO_REGRESSION}")
    labels = sorted(
        set(table.column(column)), key=lambda name: (not name.isdigit(), len(name), name)
    )
    if len(labels) < 2:
        raise UsageError(f"{table.origin}: every row has the label {labels[0]!r}")
    return labels
