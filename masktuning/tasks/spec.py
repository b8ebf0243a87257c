"""What a task is: label names, sets and default settings. A task's YAML file has these fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from masktuning.config.errors import UsageError, check_names

ROLES = ("train", "dev", "ood")
PROTOCOLS = ("standard", "paper-like")


@dataclass(frozen=True)
class SetSpec:
    """One set of a task: its columns, the source of its rows, and how it is scored."""

    name: str
    role: str
    """train, dev (in distribution) or ood (out of distribution)."""
    text: list[str] = field(default_factory=list)
    """The text column, or the two columns of sentence pairs."""
    label: str = ""
    """The label column."""
    label_names: dict[str, str] = field(default_factory=dict)
    """Maps labels in the file to label names; an unlisted label must itself be a label name."""
    file: str = ""
    """Path under --data_dir: a file, or a folder with one folder of text files per label."""
    format: str = ""
    """tsv, csv or jsonl, where the file's extension does not say so."""
    quoting: str = "csv"
    """csv, or none if quotation marks are ordinary characters in the file."""
    strip_breaks: bool = False
    """Whether to replace <br /> in the texts by a space."""
    byte_literals: bool = False
    """Whether the texts are written as Python byte literals, b'...'."""
    skip_broken_rows: bool = False
    """Whether to skip rows with too few or too many fields, with a warning that lists them."""
    empty_texts: bool = False
    """Whether empty texts are allowed."""
    hash_split: str = ""
    """held_out or kept: use only a part of the source, split by a hash of the texts.

    held_out is the tenth of the rows whose texts have the lowest hashes, kept the other nine
    tenths. The split does not depend on the order of the rows.
    """
    hub: dict[str, Any] = field(default_factory=dict)
    """A copy on the Hugging Face hub: id, split, revision, and optionally config and columns."""
    url: str = ""
    """Where the authors publish the set."""
    licence: str = ""
    """The licence of the texts."""
    generated: str = ""
    """A generated set, such as demo/train, in place of a file or a copy on the hub."""
    union_of: list[str] = field(default_factory=list)
    """Other sets of the task that this set joins; it then has no source of its own."""
    repeats: list[str] = field(default_factory=list)
    """Other sets of the task whose texts this set has again, from a source of its own. Where they
    are measured too, it is no part of a mean over sets."""
    labels: list[str] = field(default_factory=list)
    """The set's own label names, where it has fewer labels than the task."""
    label_map: dict[str, str] = field(default_factory=dict)
    """Maps the task's label names to the set's own ones, where they differ."""
    group_by: str = ""
    """A column: accuracy is also reported for each of its values and each correct label."""
    pair_id: str = ""
    """A column with the same value for a text and its edited version."""
    original: str = ""
    """The set with the original texts: row i here is an edited version of row i there."""
    lengths: list[int] = field(default_factory=list)
    """Additional lengths, in tokens, at which `masktuning.evaluate` measures the set."""
    f1: str = ""
    """A label name, to report its F1 score, or macro for the mean over all labels."""
    protocols: list[str] = field(default_factory=list)
    """Those of `PROTOCOLS` whose results table contains the set."""
    expected_counts: dict[str, int] = field(default_factory=dict)
    """Published counts: rows, and the rows of each label name."""
    own_file: bool = False
    """Whether the set comes from --eval_files; not a key of the YAML file."""


@dataclass(frozen=True)
class Task:
    """A classification task: label names in the order of their ids, sets, and default settings."""

    name: str
    description: str
    labels: list[str]
    sets: list[SetSpec]
    settings: dict[str, Any] = field(default_factory=dict)
    """Defaults for the flags of `masktuning.train`."""
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Named settings, such as those of a paper, which override `settings` with `--preset NAME`."""
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings for single methods, by the method's name; they override `settings` and presets."""

    def settings_of(self, preset: str | None, method: str | None = None) -> dict[str, Any]:
        """The default settings, overridden by those of a preset and then by those for a method.

        Raises:
            UsageError: if the task has no preset of that name.
        """
        of_method = self.methods.get(method or "", {})
        if preset is None:
            return {**self.settings, **of_method}
        if not self.presets:
            raise UsageError(f"--preset {preset}: the task {self.name} has no presets")
        check_names([preset], set(self.presets), "preset")
        return {**self.settings, **self.presets[preset], **of_method}

    @property
    def generated(self) -> bool:
        """Whether the training texts are generated: the demo tasks bring a checkpoint with them."""
        return any(spec.generated for spec in self.with_role("train"))

    def with_role(self, role: str) -> list[SetSpec]:
        """The sets of one role, in the task's order."""
        return [spec for spec in self.sets if spec.role == role]

    def named(self, name: str) -> SetSpec:
        """The set of that name; StopIteration if there is none."""
        return next(spec for spec in self.sets if spec.name == name)


@dataclass(frozen=True)
class TaskFile:
    """A task's YAML file as it is written: its top-level keys, with the sets still unchecked."""

    name: str
    labels: list[str]
    sets: dict[str, Any]
    description: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    methods: dict[str, dict[str, Any]] = field(default_factory=dict)
    include: dict[str, list[str]] = field(default_factory=dict)
    """Sets of other tasks that are out of distribution here, by the other task's name."""
