"""A task made of the user's own files."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments
from masktuning.data.readers import Table, read_hub, read_table
from masktuning.tasks import SetSpec, Task

_TEXT_COLUMNS = (
    ["sentence1", "sentence2"],
    ["premise", "hypothesis"],
    ["question1", "question2"],
    ["sentence"],
    ["text"],
)


def own_task(data: DataArguments, labels: list[str] | None = None) -> Task:
    """The task of --train_file and --validation_file or --dataset_name, and --eval_files.

    Label names, unless given, are those of the first of these, sorted.

    Raises:
        UsageError: on a missing file or column, or an --eval_files entry that is not name=path.
    """
    sources: dict[str, dict[str, Any]] = {}
    if data.dataset_name:
        named = {"id": data.dataset_name, "config": data.dataset_config_name}
        for role, split in (("train", "train"), ("dev", "validation")):
            sources[role] = {"hub": {**named, "split": split}}
    given = {"train": data.train_file, "dev": data.validation_file}
    sources |= {role: {"file": _absolute(path)} for role, path in given.items() if path}
    named_files = _parse_eval_files(data.eval_files, taken=set(given))
    sources |= {name: {"file": _absolute(path)} for name, path in named_files.items()}
    if not sources:
        raise UsageError(
            "no data: give --task, --dataset_name, or files (--train_file, --eval_files)"
        )
    first = next(iter(sources.values()))
    table = read_hub(**first["hub"]) if "hub" in first else read_table(first["file"])
    names = data.text_column_names
    text = [n.strip() for n in names.split(",")] if names else _guess_text_columns(table)
    label = data.label_column_name or "label"
    if labels is None:
        for line, value in zip(table.lines, table.column(label), strict=True):
            if not value.strip():
                raise UsageError(f"{table.origin}, line {line}: the label in {label!r} is empty")
        labels = sorted(set(table.column(label)), key=lambda n: (not n.isdigit(), len(n), n))
        if len(labels) < 2:
            raise UsageError(f"{table.origin}: every row has the label {labels[0]!r}")
    sets = [
        SetSpec(name, name if name in given else "ood", text, label, **source)
        for name, source in sources.items()
    ]
    return Task("own data", "files or a data set of the user's", labels, sets)


def with_eval_files(task: Task, data: DataArguments) -> Task:
    """`task` and --eval_files beside its sets, in the columns of its dev set unless given.

    Raises:
        UsageError: on an entry that is not name=path, or a name that the task has already.
    """
    named = _parse_eval_files(data.eval_files, taken={spec.name for spec in task.sets})
    like = task.with_role("dev")[0]
    names = data.text_column_names
    text = [n.strip() for n in names.split(",")] if names else like.text
    own = [
        SetSpec(
            name,
            "ood",
            text,
            data.label_column_name or like.label,
            label_names=like.label_names,
            file=_absolute(path),
            own_file=True,
        )
        for name, path in named.items()
    ]
    return replace(task, sets=[*task.sets, *own])


def _absolute(path: str) -> str:
    return str(Path(path).absolute())  # or --data_dir, which is for tasks, would come before it


def _parse_eval_files(entries: list[str], taken: set[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not (equals and path and re.fullmatch(r"\w+", name)):
            raise UsageError(f"--eval_files takes name=path, not {entry!r}")
        if name in taken | set(named):
            raise UsageError(f"--eval_files: the name {name!r} is taken")
        named[name] = path
    return named


def _guess_text_columns(table: Table) -> list[str]:
    for names in _TEXT_COLUMNS:
        if all(name in table.columns for name in names):
            return list(names)
    raise UsageError(
        f"{table.origin}: which column is the text? It has {', '.join(table.columns)}; "
        "give --text_column_names NAME or NAME,NAME"
    )
