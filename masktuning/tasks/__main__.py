"""List the tasks, or load every set of one task and count its rows and labels.

    python -m masktuning.tasks
    python -m masktuning.tasks check sst2 --data_dir DATA
    python -m masktuning.tasks check mine.yaml --data_dir DATA

`check` prints the counts next to the published ones. A file may hold only a part of a set, so a
count that differs is marked and is not an error; a file that exists and cannot be read is one.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import fields

from masktuning.config.errors import UsageError
from masktuning.config.parser import FlagParser, run_command, wants_help
from masktuning.evaluation.tables import aligned
from masktuning.tasks import SetSpec, Task, load_task, names

PROGRAM = "python -m masktuning.tasks"


def main(argv: list[str]) -> None:
    parser = FlagParser(PROGRAM, __doc__ or "")
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("task", nargs="?", help="the name of a task, or a YAML file")
    parser.add_argument("--data_dir", help="folder of the files; the hub is asked for missing ones")
    if wants_help(argv):
        parser.print_help()
        return
    options = parser.parse_args(argv)
    if options.action == "check" and not options.task:
        raise UsageError(f"which task? `{PROGRAM} check TASK`, with one of {', '.join(names())}")
    if options.action == "list" and (options.task or options.data_dir):
        raise UsageError(f"a task and --data_dir go with check: `{PROGRAM} check TASK`")
    if options.action == "check":
        _print(check(load_task(options.task, _settings()), options.data_dir))
    else:
        _print("\n\n".join(describe(load_task(name)) for name in names()))


def describe(task: Task) -> str:
    """The task's labels and settings, and a table of its sets with their sources and licences."""
    header = (
        "set",
        "role",
        "rows",
        "file under --data_dir",
        "hub",
        "licence (-: unknown to us)",
        "published at",
    )
    rows = [
        (
            spec.name,
            spec.role,
            str(spec.expected_counts.get("rows", "")),
            " + ".join(spec.union_of) or spec.file or f"generated: {spec.generated}",
            str(spec.hub.get("id", "-")),
            spec.licence or "-",
            spec.url or "-",
        )
        for spec in task.sets
    ]
    settings = ", ".join(f"{name} {value}" for name, value in task.settings.items())
    head = f"{task.name}: {task.description}\nlabels: {', '.join(task.labels)}"
    return f"{head}\nsettings: {settings}\n{aligned([header, *rows])}"


def check(task: Task, data_dir: str | None) -> str:
    """Loads every set and returns a table of its rows and label counts next to the published ones.

    The reasons why sets were not found stand below the table.

    Raises:
        UsageError: if a set is there and cannot be read.
    """
    from masktuning.data.load import LabelledTexts, load_each

    label_ids: dict[str, list[int]] = {}
    missing: list[str] = []
    for spec, found in load_each(task.sets, task.labels, data_dir):
        if isinstance(found, LabelledTexts):
            label_ids[spec.name] = found.labels
        else:
            missing.append(str(found))
    rows: list[tuple[str, ...]] = [("set", "role", "rows", "labels", "published", "")]
    rows += [_counted(spec, task, label_ids) for spec in task.sets]
    return "\n".join([aligned(rows), *missing])


def _counted(spec: SetSpec, task: Task, label_ids: dict[str, list[int]]) -> tuple[str, ...]:
    """One set's row of the table; `label_ids` holds those of the sets that were found."""
    parts = spec.union_of or [spec.name]
    published = _published(spec)
    if not all(part in label_ids for part in parts):
        return (spec.name, spec.role, "-", "not found", published, "")
    labels = spec.labels or task.labels
    ids = [label for part in parts for label in label_ids[part]]
    per_label = Counter(labels[i] for i in ids)
    counts = {"rows": len(ids), **{name: per_label[name] for name in labels}}
    differs = any(counts.get(key) != value for key, value in spec.expected_counts.items())
    verdict = "differs" if differs else "as published" if spec.expected_counts else ""
    listed = ", ".join(f"{name} {per_label[name]}" for name in labels)
    return (spec.name, spec.role, str(len(ids)), listed, published, verdict)


def _published(spec: SetSpec) -> str:
    rows = str(spec.expected_counts.get("rows", "-"))
    labels = ", ".join(f"{k} {v}" for k, v in spec.expected_counts.items() if k != "rows")
    return f"{rows}: {labels}" if labels else rows


def _settings() -> set[str]:
    """What a task may have settings for: the options of `python -m masktuning.train`."""
    from masktuning.config.options import DataArguments, ModelArguments, RunArguments
    from masktuning.methods import options_by_method
    from masktuning.training.arguments import MaskTuningArguments

    groups = (MaskTuningArguments, DataArguments, ModelArguments, RunArguments)
    found = {one.name for group in groups for one in fields(group)}
    return found.union(*options_by_method().values())


def _print(text: str) -> None:
    """Prints; ends quietly if the reader of a pipe, such as `head`, has closed it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_command(main)
