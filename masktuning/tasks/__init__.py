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
    strip_breaks: true              # <br /> in the texts becomes a space
    hub: {id: ..., config: ..., split: ..., revision: ...}
    home: where the authors publish it
    generated: demo/train           # of masktuning.demo instead of file and hub
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

    @property
    def generated(self) -> bool:
        """Whether it trains on made-up texts: a checkpoint comes along, and both methods run."""
        return any(spec.generated for spec in self.with_role("train"))

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
    try:
        check_names([name], set(names()), "task")
    except UsageError as error:
        known = ", ".join(names())
        raise UsageError(f"{error}; there are {known}, or give a YAML file") from None
    return _from_mapping(name, read_yaml(_FOLDER / f"{name}.yaml"))


def _from_mapping(origin: str, content: dict[str, Any]) -> Task:
    _check_keys(origin, content, Task, required=("name", "labels", "sets"))
    if not isinstance(content["labels"], list) or len(content["labels"]) < 2:
        raise UsageError(f"{origin}: labels must be a list of two names or more")
    if not isinstance(content["sets"], dict):
        raise UsageError(f"{origin}: sets must map names to sets")
    sets = [_set_spec(f"{origin}: sets: {n}", str(n), s) for n, s in content["sets"].items()]
    roles = [spec.role for spec in sets]
    if roles.count("train") != 1 or "dev" not in roles:
        raise UsageError(f"{origin}: sets must hold one of role train and one or more of role dev")
    settings = content.get("settings") or {}
    if not isinstance(settings, dict):
        raise UsageError(f"{origin}: settings must map flags to values")
    labels = [str(label) for label in content["labels"]]
    return Task(str(content["name"]), str(content.get("about", "")), labels, sets, settings)


def _set_spec(origin: str, name: str, content: Any) -> SetSpec:
    if not isinstance(content, dict):
        raise UsageError(f"{origin}: must be a mapping with role, text, label and a source")
    _check_keys(origin, content, SetSpec, required=("role", "text", "label"), extra=("name",))
    if content["role"] not in ROLES:
        raise UsageError(f"{origin}: role must be one of {', '.join(ROLES)}")
    text = content["text"]
    if not isinstance(text, list) or len(text) not in (1, 2):
        raise UsageError(f"{origin}: text must be a list of one column, or of two for pairs")
    if content.get("quoting", "csv") not in ("csv", "none"):
        raise UsageError(f"{origin}: quoting must be csv or none")
    hub = content.get("hub") or {}
    if hub and not {"id", "split", "revision"} <= hub.keys():
        raise UsageError(f"{origin}: hub needs an id, a split and a pinned revision")
    if not (hub or content.get("file") or content.get("generated")):
        raise UsageError(f"{origin}: needs a source: file, hub or generated")
    label_names = {str(k): str(v) for k, v in (content.get("label_names") or {}).items()}
    return SetSpec(name=name, **{**content, "label_names": label_names, "hub": hub})


def _check_keys(
    origin: str,
    content: dict[str, Any],
    shape: type,
    required: tuple[str, ...],
    extra: tuple[str, ...] = (),
) -> None:
    known = {f.name for f in fields(shape)} - set(extra)
    check_names(content, known, f"key in {origin}:")
    for key in required:
        if content.get(key) in (None, "", [], {}):
            raise UsageError(f"{origin}: {key!r} is missing")
