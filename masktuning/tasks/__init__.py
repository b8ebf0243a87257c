"""Tasks: one YAML file each, with its label names, its sets and the paper's settings.

name: sst2
about: one line
labels: [negative, positive]        # the ids' order
settings: {alpha: 0.6, ...}         # defaults of the command-line flags
grid: {learning_rate: [2.0e-5]}     # what the paper searched, on dev
borrows: {mnli: [hans]}             # another task's sets, out of distribution here
sets:
  train:
    role: train                     # train, dev (in distribution) or ood
    text: [sentence]                # one column, or two for pairs
    label: label
    label_names: {"0": negative}    # raw label to label name, where they differ
    file: sst2/train.tsv            # under --data_dir; or a folder of one folder a label
    hub: {id: ..., config: ..., split: ..., revision: ..., columns: {theirs: ours}}
    home: where the authors publish it

Every other key of a set is a field of `SetSpec`, below, and is explained there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError, check_names
from masktuning.tasks.yaml_schema import Document

_FOLDER = Path(__file__).parent
ROLES = ("train", "dev", "ood")
PROTOCOLS = ("standard", "paper-like")
_HUB = {"id", "config", "split", "revision", "columns"}


@dataclass(frozen=True)
class SetSpec:
    """One set of a task: its columns, where its rows come from, and how it is scored."""

    name: str
    role: str
    text: list[str] = field(default_factory=list)
    label: str = ""
    label_names: dict[str, str] = field(default_factory=dict)
    """Raw label to label name; a label that is not listed must be a label name."""
    file: str = ""
    format: str = ""
    """tsv, csv or jsonl, where the file's ending does not tell."""
    quoting: str = "csv"
    """csv, or none: quotes stand for themselves."""
    strip_breaks: bool = False
    """Replace <br /> in the texts by a space."""
    byte_literals: bool = False
    """The texts are Python byte literals, b'...'."""
    skip_broken_rows: bool = False
    """Leave out rows with fields too few or too many, and say which."""
    empty_texts: bool = False
    """Some texts are empty, and are read as such."""
    tenth: str = ""
    """only or none: take the tenth of the rows whose texts have the lowest hashes, or the rest."""
    hub: dict[str, Any] = field(default_factory=dict)
    home: str = ""
    licence: str = ""
    generated: str = ""
    """A set of masktuning.demo, such as demo/train, instead of a source."""
    combines: list[str] = field(default_factory=list)
    """Other sets of the task that are one set here; it has no source of its own."""
    labels: list[str] = field(default_factory=list)
    """The set's own label names, where they are fewer than the task's."""
    collapse: dict[str, str] = field(default_factory=dict)
    """The task's label names that are another one of the set's."""
    group: str = ""
    """A column by which accuracy is told apart, with the gold label."""
    pair: str = ""
    """A column that is the same for a text and its edited version."""
    original: str = ""
    """The set whose row i is the text that row i here is an edit of."""
    lengths: list[int] = field(default_factory=list)
    """More lengths, in tokens, at which `evaluate` measures the set."""
    f1: str = ""
    """F1 of the label of that name, or macro for the mean over all labels."""
    protocols: list[str] = field(default_factory=list)
    """Of `PROTOCOLS`, those whose table the set belongs to."""
    known: dict[str, int] = field(default_factory=dict)
    """Published counts: rows, and rows of each label name."""
    own_file: bool = False
    """One of --eval_files."""


@dataclass(frozen=True)
class Task:
    """Label names in the order of their ids, the sets, and defaults for the flags."""

    name: str
    about: str
    labels: list[str]
    sets: list[SetSpec]
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[float]] = field(default_factory=dict)

    @property
    def generated(self) -> bool:
        """Whether it trains on made-up texts: a checkpoint comes along, and both methods run."""
        return any(spec.generated for spec in self.with_role("train"))

    def with_role(self, role: str) -> list[SetSpec]:
        return [spec for spec in self.sets if spec.role == role]

    def named(self, name: str) -> SetSpec:
        return next(spec for spec in self.sets if spec.name == name)


@dataclass(frozen=True)
class _File:
    name: str
    labels: list[str]
    sets: dict[str, Any]
    about: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[float]] = field(default_factory=dict)
    borrows: dict[str, list[str]] = field(default_factory=dict)


def names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_task(name: str, settings: set[str] | None = None) -> Task:
    """A task by name, or from a YAML file of the user's; `settings` are the names it may set.

    Raises:
        UsageError: if there is no such task, or the file's keys or values do not fit, with the
            line.
    """
    if not name.endswith((".yaml", ".yml")):
        try:
            check_names([name], set(names()), "task")
        except UsageError as error:
            known = ", ".join(names())
            raise UsageError(f"{error}; there are {known}, or give a YAML file") from None
        name = str(_FOLDER / f"{name}.yaml")
    document = Document(name)
    file = document.fit((), document.content, _File)
    if len(set(file.labels)) < max(2, len(file.labels)):
        raise document.error(("labels",), "labels must be a list of two different names or more")
    for key in file.settings if settings is not None else ():
        try:
            check_names([key], settings or set(), "setting")
        except UsageError as error:
            raise document.error(("settings", key), str(error)) from None
    sets = [_set(document, str(key), content, file) for key, content in file.sets.items()]
    roles = [spec.role for spec in sets]
    if roles.count("train") != 1 or "dev" not in roles:
        message = "sets must hold one of role train and one or more of role dev"
        raise document.error(("sets",), message)
    for other, borrowed in file.borrows.items():
        if other not in names():
            raise document.error(("borrows", other), f"{other!r} is none of {', '.join(names())}")
        lender = load_task(other)
        parts = {part for one in lender.sets if one.name in borrowed for part in one.combines}
        if not parts <= set(borrowed):
            message = f"{', '.join(sorted(parts - set(borrowed)))}: part of a set that is borrowed"
            raise document.error(("borrows", other), message)
        new = {spec.name for spec in lender.sets} - {spec.name for spec in sets}
        if lender.labels != file.labels or not set(borrowed) <= new:
            message = f"not all of these are sets of {other}, with its labels, and new here"
            raise document.error(("borrows", other), message)
        sets += [replace(lender.named(one), role="ood") for one in borrowed]
    columns = {len(spec.text) for spec in sets if not spec.combines}
    if len(columns) > 1:
        raise document.error(("sets",), "some sets have one text column and some have two")
    return Task(file.name, file.about, file.labels, sets, file.settings, file.grid)


def _set(document: Document, name: str, content: Any, file: _File) -> SetSpec:
    """One set of a file, with what its keys must be to each other.

    Raises:
        UsageError: naming the line.
    """
    path = ("sets", name)
    spec: SetSpec = document.fit(path, content, SetSpec, name=name, own_file=False)

    def check(right: bool, key: str, message: str) -> None:
        if not right:
            raise document.error((*path, key), message)

    def one_of(key: str, *choices: str) -> None:
        value = getattr(spec, key)
        check(value in choices, key, f"{key} must be {' or '.join(filter(None, choices))}")

    one_of("role", *ROLES)
    one_of("quoting", "csv", "none")
    one_of("format", "", "tsv", "csv", "jsonl")
    one_of("tenth", "", "only", "none")
    check(bool(re.fullmatch(r"[\w-]+", name)), "role", f"{name!r}: letters, digits, _ and - only")
    check(all(length > 0 for length in spec.lengths), "lengths", "lengths are 1 token or more")
    own = spec.labels or file.labels
    check(spec.f1 in ("", "macro", *own), "f1", f"f1 must be macro or one of {', '.join(own)}")
    known = {"rows", *own}
    check(spec.known.keys() <= known, "known", f"known counts are of {', '.join(sorted(known))}")
    for key, others in (("combines", spec.combines), ("original", [spec.original])):
        for other in filter(None, others):
            check(other in file.sets and other != name, key, f"{other!r} is no other set here")
    for protocol in spec.protocols:
        check(protocol in PROTOCOLS, "protocols", f"protocols are {', '.join(PROTOCOLS)}")
    if spec.combines:
        check(spec.role == "ood", "role", "a set that combines others has role ood")
        parts = [file.sets[part] for part in spec.combines if isinstance(file.sets[part], dict)]
        plain = not any(part.get("combines") or part.get("labels") for part in parts)
        check(plain, "combines", "these must be sets with a source and the task's labels")
        return spec
    message = "text must be a list of one column, or of two for pairs"
    check(len(spec.text) in (1, 2), "text", message)
    check(bool(spec.label), "label", "'label' is missing: the column of the label")
    message = "needs a source: file, hub or generated"
    check(bool(spec.hub or spec.file or spec.generated), "role", message)
    if spec.hub:
        pinned = {"id", "split", "revision"} <= spec.hub.keys()
        check(pinned, "hub", "hub needs an id, a split and a pinned revision")
        check(spec.hub.keys() <= _HUB, "hub", f"hub takes {', '.join(sorted(_HUB))}")
        columns = spec.hub.get("columns", {})
        check(isinstance(columns, dict), "hub", "hub's columns must map their names to ours")
    check(not spec.labels or spec.role == "ood", "labels", "labels of its own: role must be ood")
    for label in spec.label_names.values():
        check(label in own, "label_names", f"{label!r} is none of {', '.join(own)}")
    message = "collapse goes with the set's own labels: give those too"
    check(bool(spec.labels) or not spec.collapse, "collapse", message)
    for label in spec.collapse:
        check(label in file.labels, "collapse", f"{label!r} is none of the task's labels")
    for label in file.labels:
        here = spec.collapse.get(label, label)
        check(here in own, "collapse", f"collapse must say which of {', '.join(own)} {label!r} is")
    return spec
