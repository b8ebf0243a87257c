"""Tasks: one YAML file each, with its label names, its sets and the paper's settings.

name: sst2
about: one line
labels: [negative, positive]        # the ids' order
settings: {alpha: 0.6, ...}         # defaults of the command-line flags
sets:
  train:
    role: train                     # train, dev (in distribution) or ood
    text: [sentence]                # one column, or two for pairs
    label: label
    label_names: {"0": negative, "1": positive}
    file: sst2/train.tsv            # under --data_dir
    quoting: none                   # csv (default) or none
    hub: {id: ..., config: ..., split: ..., revision: ...}
    home: where the authors publish it
    generated: train                # of masktuning.demo instead of file and hub
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from masktuning.config import UsageError, check_names, read_yaml

_FOLDER = Path(__file__).parent
ROLES = ("train", "dev", "ood")


@dataclass(frozen=True)
class SetSpec:
    """One set of a task: its columns, and where its rows come from."""

    name: str
    role: str
    text: list[str]
    label: str
    label_names: dict[str, str] = field(default_factory=dict)
    """Raw label to label name; a label that is not listed must be a label name."""
    file: str = ""
    quoting: str = "csv"
    strip_breaks: bool = False
    """Replace <br /> in the texts by a space."""
    hub: dict[str, str] = field(default_factory=dict)
    home: str = ""
    generated: str = ""


@dataclass(frozen=True)
class Task:
    """Label names in the order of their ids, the sets, and defaults for the flags."""

    name: str
    about: str
    labels: list[str]
    sets: list[SetSpec]
    settings: dict[str, Any] = field(default_factory=dict)

    def with_role(self, role: str) -> list[SetSpec]:
        return [spec for spec in self.sets if spec.role == role]


def names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_task(name: str) -> Task:
    """A task by name, or from a YAML file of the user's.

    Raises:
        UsageError: if there is no such task, or the file's keys or values do not fit.
    """
    if name.endswith((".yaml", ".yml")):
        return _from_mapping(name, read_yaml(name))
    check_names([name], set(names()), "task")
    return _from_mapping(name, read_yaml(_FOLDER / f"{name}.yaml"))


def _from_mapping(origin: str, content: dict[str, Any]) -> Task:
    check_names(content, {f.name for f in fields(Task)}, f"key in {origin}:")
    for key in ("name", "labels", "sets"):
        if not content.get(key):
            raise UsageError(f"{origin}: {key!r} is missing")
    known = {f.name for f in fields(SetSpec)} - {"name"}
    specs = []
    for name, spec in content["sets"].items():
        check_names(spec, known, f"key in {origin}: sets: {name}:")
        for key in ("role", "text", "label"):
            if key not in spec:
                raise UsageError(f"{origin}: sets: {name}: {key!r} is missing")
        if spec["role"] not in ROLES:
            raise UsageError(f"{origin}: sets: {name}: role must be one of {', '.join(ROLES)}")
        if spec.get("hub") and not spec["hub"].get("revision"):
            raise UsageError(f"{origin}: sets: {name}: hub needs a pinned revision")
        specs.append(SetSpec(name=name, **spec))
    return Task(
        name=content["name"],
        about=content.get("about", ""),
        labels=[str(label) for label in content["labels"]],
        sets=specs,
        settings=content.get("settings") or {},
    )
