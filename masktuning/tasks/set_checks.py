"""One set of a task's YAML file: its keys and what they require of each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from masktuning.tasks.spec import PROTOCOLS, ROLES, SetSpec, TaskFile
from masktuning.tasks.yaml_schema import Document

_CHOICES: dict[str, tuple[str, ...]] = {
    "role": ROLES,
    "quoting": ("csv", "none"),
    "format": ("", "tsv", "csv", "jsonl"),
    "hash_split": ("", "held_out", "kept"),
}
_HUB_KEYS = {"id", "config", "split", "revision", "columns"}
_REQUIRED_HUB_KEYS = {"id", "split", "revision"}

Problem = tuple[str, str]
"""The key that is wrong, and the error message."""


def read_set(document: Document, name: str, content: Any, file: TaskFile) -> SetSpec:
    """The set `name` of a task's file, checked.

    Raises:
        UsageError: at the first key that does not fit, with its line.
    """
    path = ("sets", name)
    spec: SetSpec = document.fit(path, content, SetSpec, name=name, own_file=False)
    problem = next(_problems(spec, file), None)
    if problem:
        key, message = problem
        raise document.error((*path, key), message)
    return spec


def _problems(spec: SetSpec, file: TaskFile) -> Iterator[Problem]:
    """Everything that is wrong with a set; a later check may assume that the earlier ones held."""
    yield from _values(spec, spec.labels or file.labels)
    yield from _references(spec, file)
    if spec.union_of:
        yield from _union(spec, file)
    else:
        yield from _source(spec)
        yield from _labels(spec, file.labels)


def _values(spec: SetSpec, labels: list[str]) -> Iterator[Problem]:
    for key, choices in _CHOICES.items():
        if getattr(spec, key) not in choices:
            yield key, f"{key} must be {' or '.join(filter(None, choices))}"
    if not re.fullmatch(r"[\w-]+", spec.name):
        yield "role", f"{spec.name!r}: a set's name consists of letters, digits, _ and -"
    if any(length < 1 for length in spec.lengths):
        yield "lengths", "lengths must be 1 token or more"
    if spec.f1 not in ("", "macro", *labels):
        yield "f1", f"f1 must be macro or one of {', '.join(labels)}"
    countable = {"rows", *labels}
    if not spec.expected_counts.keys() <= countable:
        yield "expected_counts", f"expected_counts may give {', '.join(sorted(countable))}"


def _references(spec: SetSpec, file: TaskFile) -> Iterator[Problem]:
    named = [("union_of", part) for part in spec.union_of]
    named += [("repeats", other) for other in spec.repeats]
    if spec.original:
        named.append(("original", spec.original))
    for key, other in named:
        if other not in file.sets or other == spec.name:
            yield key, f"{other!r} is not another set of this file"
    if spec.repeats and spec.role != "ood":
        yield "repeats", "repeats is for sets of role ood"
    parts = (file.sets[other] for other in spec.repeats)
    if any(isinstance(part, dict) and part.get("repeats") for part in parts):
        yield "repeats", "these must be sets that repeat no others"
    if not set(spec.protocols) <= set(PROTOCOLS):
        yield "protocols", f"protocols may list {', '.join(PROTOCOLS)}"


def _union(spec: SetSpec, file: TaskFile) -> Iterator[Problem]:
    if spec.role != "ood":
        yield "role", "a union of other sets must have role ood"
    parts = [file.sets[part] for part in spec.union_of if isinstance(file.sets[part], dict)]
    if any(part.get("union_of") or part.get("labels") for part in parts):
        yield "union_of", "these must be sets with a source of their own and the task's labels"


def _source(spec: SetSpec) -> Iterator[Problem]:
    if len(spec.text) not in (1, 2):
        yield "text", "text must be a list of one column, or of two for sentence pairs"
    if not spec.label:
        yield "label", "'label' is missing: the name of the label column"
    if not (spec.hub or spec.file or spec.generated):
        yield "role", "the set needs a source: file, hub or generated"
    if not spec.hub:
        return
    if not spec.hub.keys() >= _REQUIRED_HUB_KEYS:
        yield "hub", "hub needs an id, a split and a pinned revision"
    if not spec.hub.keys() <= _HUB_KEYS:
        yield "hub", f"hub takes {', '.join(sorted(_HUB_KEYS))}"
    if not isinstance(spec.hub.get("columns", {}), dict):
        yield "hub", "hub's columns must map the data set's column names to the file's"


def _labels(spec: SetSpec, task_labels: list[str]) -> Iterator[Problem]:
    own = spec.labels or task_labels
    if spec.labels and spec.role != "ood":
        yield "labels", "only a set of role ood may have labels of its own"
    for label in spec.label_names.values():
        if label not in own:
            yield "label_names", f"{label!r} is none of {', '.join(own)}"
    if spec.label_map and not spec.labels:
        yield "label_map", "label_map maps to the set's own labels: give labels too"
    for label in spec.label_map:
        if label not in task_labels:
            yield "label_map", f"{label!r} is none of the task's labels"
    for label in task_labels:
        if spec.label_map.get(label, label) not in own:
            yield "label_map", f"label_map must say which of {', '.join(own)} {label!r} becomes"
