"""The options of the commands as dataclasses, and YAML files of them.

Nothing here imports torch, so that `--help` is quick; TrainingArguments joins in arguments.py.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from masktuning.methods import METHODS


class UsageError(Exception):
    """Something the user gave cannot be used; the message says what and how to mend it."""


@dataclass
class MethodArguments:
    """How to train."""

    _argument_group_name = "method"

    method: str = field(
        default="mask_tuning", metadata={"help": "Training method.", "choices": list(METHODS)}
    )
    alpha: float = field(
        default=0.6,
        metadata={"help": "Weight of the masked-LM loss against the classification loss, 0 to 1."},
    )
    mask_rate: float = field(
        default=0.05, metadata={"help": "Share of an example's tokens to mask (at least one)."}
    )
    corruption: str = field(
        default="mask",
        metadata={
            "help": "What a masked token shows: always the mask, or BERT's 80/10/10.",
            "choices": ["mask", "80-10-10"],
        },
    )
    top_k: int = field(
        default=1,
        metadata={"help": "Fill in the most likely token (1), or draw among the k most likely."},
    )
    temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of that draw; needs --top_k above 1."}
    )
    include_original: bool = field(
        default=False,
        metadata={"help": "Classify the original text too, with the perturbed one's weight."},
    )
    backend: str = field(
        default="auto",
        metadata={
            "help": "Kernels of the hot path.",
            "choices": ["auto", "reference", "cpp", "cuda", "triton"],
        },
    )

    def check(self) -> None:
        """Raises ValueError on an option out of range, naming it."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: it weighs two losses, from 0 to 1")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}: give a share above 0, up to 1")
        if not 1 <= self.top_k <= 64:
            raise ValueError(f"top_k is {self.top_k}: give a number from 1 to 64")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: give a number above 0")


@dataclass
class ModelArguments:
    """Which model."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder or hub id; the demo task brings its own."},
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Longer texts are truncated (and counted)."}
    )

    def __post_init__(self) -> None:
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length is {self.max_seq_length}: give 4 or more")


@dataclass
class DataArguments:
    """Which data: a task by name, or files."""

    _argument_group_name = "data"

    task: str | None = field(
        default=None,
        metadata={"help": "Task name, or a YAML file of your own.", "aliases": ["--task_name"]},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "The task's files; what is not there comes from the hub."}
    )
    train_file: str | None = field(
        default=None, metadata={"help": "Own training data: .csv, .tsv, .jsonl or .parquet."}
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "Own in-distribution validation data."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Own data set on the hub, with splits train and validation."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Its configuration, where it has several."}
    )
    eval_files: list[str] = field(
        default_factory=list,
        metadata={"help": "More sets to evaluate, as name=path ..., such as out-of-domain ones."},
    )
    text_column_names: str | None = field(
        default=None, metadata={"help": "One text column, or two with a comma between them."}
    )
    label_column_name: str | None = field(default=None, metadata={"help": "The label column."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many training examples."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only the first so many examples of each set."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenise."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more")


@dataclass
class RunArguments:
    """How the command runs."""

    _argument_group_name = "run"

    config: str | None = field(
        default=None, metadata={"help": "YAML file of options; flags win over it."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Four steps, one batch of each set and a time estimate; keeps nothing."},
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Replace the run that --output_dir holds.",
            "aliases": ["--overwrite_output_dir"],
        },
    )


def one_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def check_names(names: Any, known: set[str], kind: str) -> None:
    """Raises UsageError for the first of `names` that is not `known`, with the nearest one."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"unknown {kind} {name!r}{hint}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        UsageError: naming the file, and the line where it is not valid.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', '')}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a mapping of names to values")
    return content
