"""From a task's name or YAML file to a checked `Task`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError, check_names
from masktuning.tasks.set_checks import read_set
from masktuning.tasks.spec import SetSpec, Task, TaskFile
from masktuning.tasks.yaml_schema import Document

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """The names of the tasks that come with the package, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_task(name: str, settings: set[str] | None = None) -> Task:
    """A task of the package by its name, or a task of the user's by the path of its YAML file.

    `settings`, if given, are the only names that the task may have settings for.

    Raises:
        UsageError: if there is no such task; if a key or a value of the file is wrong, with its
            line.
    """
    document = Document(_path_of(name))
    file: TaskFile = document.fit((), document.content, TaskFile)
    if len(set(file.labels)) < max(2, len(file.labels)):
        raise document.error(("labels",), "labels must be a list of two different names or more")
    _check_settings(document, file, settings)
    sets = [read_set(document, str(key), content, file) for key, content in file.sets.items()]
    roles = [spec.role for spec in sets]
    if roles.count("train") != 1 or "dev" not in roles:
        message = "sets must hold one of role train and one or more of role dev"
        raise document.error(("sets",), message)
    for other, wanted in file.include.items():
        sets += _included(document, file, other, wanted, taken={spec.name for spec in sets})
    if len({len(spec.text) for spec in sets if not spec.union_of}) > 1:
        raise document.error(("sets",), "some sets have one text column and some have two")
    return Task(
        file.name, file.description, file.labels, sets, file.settings, file.presets, file.methods
    )


def _path_of(name: str) -> str:
    if name.endswith((".yaml", ".yml")):
        return name
    if name.lower() in names():  # as run_glue.py has it
        name = name.lower()
    try:
        check_names([name], set(names()), "task")
    except UsageError as error:
        known = ", ".join(names())
        raise UsageError(f"{error}; the tasks are {known}, or give a YAML file") from None
    return str(_FOLDER / f"{name}.yaml")


def _check_settings(document: Document, file: TaskFile, settings: set[str] | None) -> None:
    if settings is None:
        return
    groups: dict[tuple[str, ...], dict[str, Any]] = {("settings",): file.settings}
    groups |= {("presets", name): preset for name, preset in file.presets.items()}
    groups |= {("methods", name): given for name, given in file.methods.items()}
    for place, group in groups.items():
        for key in group:
            try:
                check_names([key], settings, "setting")
            except UsageError as error:
                raise document.error((*place, key), str(error)) from None


def _included(
    document: Document, file: TaskFile, other: str, wanted: list[str], taken: set[str]
) -> list[SetSpec]:
    """The sets `wanted` of the task `other`, out of distribution here.

    Raises:
        UsageError: with the line, if the other task has no such sets or has other labels, if a
            name is already `taken`, or if a union is included without all of its parts.
    """
    place = ("include", other)
    if other not in names():
        raise document.error(place, f"{other!r} is none of {', '.join(names())}")
    source = load_task(other)
    parts = {part for spec in source.sets if spec.name in wanted for part in spec.union_of}
    if missing := ", ".join(sorted(parts - set(wanted))):
        raise document.error(place, f"{missing}: part of an included set, so include it as well")
    new = {spec.name for spec in source.sets} - taken
    if source.labels != file.labels or not set(wanted) <= new:
        raise document.error(
            place,
            f"each of these must be a set of {other} with the same labels, and its name must not "
            "be the name of a set here",
        )
    return [replace(source.named(name), role="ood") for name in wanted]
