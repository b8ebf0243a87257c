"""List the tasks, or load every set of one and count it.

    python -m masktuning.tasks
    python -m masktuning.tasks check sst2 --data_dir DATA
    python -m masktuning.tasks check mine.yaml --data_dir DATA

`check` prints rows and label counts beside the published ones. Files may hold a part of a set: a
count that differs is marked, and is no error; a file that cannot be read is one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from masktuning.config.errors import UsageError
from masktuning.config.parser import FlagParser, run_command
from masktuning.evaluation.tables import aligned
from masktuning.tasks import SetSpec, Task, load_task, names

PROGRAM = "python -m masktuning.tasks"


def main(argv: list[str]) -> None:
    parser = FlagParser(PROGRAM, __doc__ or "")
    parser.add_argument("action", nargs="?", choices=["list", "check"], default="list")
    parser.add_argument("task", nargs="?", help="a task's name, or a YAML file")
    parser.add_argument("--data_dir", help="the task's files; what is not there comes from the hub")
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        return
    options = parser.parse_args(argv)
    if options.action == "check" and not options.task:
        raise UsageError(f"which task? `{PROGRAM} check TASK`; there are {', '.join(names())}")
    if options.action == "list" and (options.task or options.data_dir):
        raise UsageError("a task and --data_dir go with check")
    if options.action == "check":
        print(check(load_task(options.task, _settings()), options.data_dir))
    else:
        print("\n\n".join(describe(load_task(name)) for name in names()))


def describe(task: Task) -> str:
    """What a task is, its settings, and each set with its source and licence."""
    rows = [
        (
            "set",
            "role",
            "rows",
            "file under --data_dir",
            "hub",
            "licence (-: unknown to us)",
            "published at",
        )
    ]
    for spec in task.sets:
        source = " + ".join(spec.combines) or spec.file or f"generated: {spec.generated}"
        rows.append(
            (
                spec.name,
                spec.role,
                str(spec.known.get("rows", "")),
                source,
                str(spec.hub.get("id", "-")),
                spec.licence or "-",
                spec.home or "-",
            )
        )
    settings = ", ".join(f"{name} {value}" for name, value in task.settings.items())
    head = f"{task.name}: {task.about}\nlabels: {', '.join(task.labels)}\nsettings: {settings}"
    return f"{head}\n{aligned(rows)}"


def check(task: Task, data_dir: str | None) -> str:
    """Loads every set; a table of rows and label counts beside the known ones.

    Raises:
        UsageError: if a set is there and cannot be read.
    """
    from masktuning.data.load import LabelledTexts, load_each

    loaded: dict[str, LabelledTexts] = {}
    missing: dict[str, str] = {}
    for spec, found in load_each(task.sets, task.labels, data_dir):
        if isinstance(found, LabelledTexts):
            loaded[spec.name] = found
        else:
            missing[spec.name] = str(found)
    rows = [("set", "role", "rows", "labels", "known", "")]
    for spec in task.sets:
        parts = spec.combines or [spec.name]
        if not all(part in loaded for part in parts):
            rows.append((spec.name, spec.role, "-", "not found", _known(spec), ""))
            continue
        names = spec.labels or task.labels
        ids = [label for part in parts for label in loaded[part].labels]
        counted = Counter(names[i] for i in ids)
        counts = {"rows": len(ids), **{name: counted[name] for name in names}}
        labels = ", ".join(f"{name} {counted[name]}" for name in names)
        differs = any(counts.get(key) != value for key, value in spec.known.items())
        mark = "differs" if differs else "as known" if spec.known else ""
        rows.append((spec.name, spec.role, str(len(ids)), labels, _known(spec), mark))
    return "\n".join([aligned(rows), *missing.values()])


def _settings() -> set[str]:
    """What a task may set: the options of `python -m masktuning.train`."""
    from masktuning.config.options import DataArguments, ModelArguments
    from masktuning.training.arguments import MaskTuningArguments

    groups = (MaskTuningArguments, DataArguments, ModelArguments)
    return {one.name for group in groups for one in fields(group)}


def _known(spec: SetSpec) -> str:
    labels = ", ".join(f"{k} {v}" for k, v in spec.known.items() if k != "rows")
    rows = str(spec.known.get("rows", "-"))
    return f"{rows}: {labels}" if labels else rows


if __name__ == "__main__":
    run_command(main)
