"""The options of the commands as dataclasses: their flags, help texts and checks.

Nothing in this folder imports torch, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field


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
