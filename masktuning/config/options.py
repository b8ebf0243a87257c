"""The options of every training run as dataclasses: their flags, help texts and checks.

The options of the training itself are in training/arguments.py, a method's own options are the
dataclass `Options` of the method, and each other command declares its own in its file. Nothing in
this folder imports torch, so that `--help` is quick.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class ModelArguments:
    """The model."""

    _argument_group_name = "model"

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Checkpoint folder or hub id; the demo task brings its own."},
    )
    model_revision: str | None = field(
        default=None,
        metadata={"help": "Branch, tag or commit of the model on the hub, and of its tokenizer."},
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or hub id of a tokenizer other than the model's."}
    )
    ignore_mismatched_sizes: bool = field(
        default=False,
        metadata={"help": "Replace a classifier that was trained for another number of labels."},
    )
    max_seq_length: int = field(
        default=128,
        metadata={"help": "Texts are truncated to this many tokens; a warning gives their number."},
    )
    pad_to_max_length: bool = field(
        default=False,
        metadata={"help": "Pad every batch to max_seq_length, which takes longer."},
    )

    def __post_init__(self) -> None:
        if self.max_seq_length < 4:
            raise ValueError(f"max_seq_length is {self.max_seq_length}: give 4 or more")


@dataclass
class DataArguments:
    """The data: a task by name, or files of your own."""

    _argument_group_name = "data"

    task: str | None = field(
        default=None,
        metadata={"help": "Task name, or a YAML file of your own.", "aliases": ["--task_name"]},
    )
    preset: str | None = field(
        default=None,
        metadata={"help": "Settings of the task by a name: paper gives those of its paper."},
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "The folder of the task's files; files that it lacks come from the hub."},
    )
    train_file: str | None = field(
        default=None,
        metadata={"help": "Training data of your own: .csv, .tsv, .json, .jsonl or .parquet."},
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "In-distribution validation data of your own."}
    )
    test_file: str | None = field(
        default=None,
        metadata={"help": "Texts of your own to predict labels for; it needs no label column."},
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Data set of your own on the hub, with splits train and validation."},
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "The configuration of that data set, if it has several."}
    )
    eval_files: list[str] = field(
        default_factory=list,
        metadata={"help": "More sets to evaluate, such as out-of-domain ones, each as name=path."},
    )
    text_column_names: str | None = field(
        default=None, metadata={"help": "One text column, or two with a comma between them."}
    )
    label_column_name: str | None = field(
        default=None, metadata={"help": "Name of the label column."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only this many training examples, the first ones."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only this many examples of each set, the first ones."}
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes that tokenise."}
    )
    overwrite_cache: bool = field(
        default=False, metadata={"help": "Tokenise again what an earlier run tokenised."}
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples", "preprocessing_num_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: give 1 or more")


@dataclass
class ClassifierArguments:
    """A trained classifier that a command runs, and how."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or hub id."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the model on the hub."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or hub id of a tokenizer other than the model's."}
    )
    label_names: list[str] = field(
        default_factory=list,
        metadata={
            "help": "The model's labels in the order of its ids, if its config.json has none."
        },
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Texts per batch."})


@dataclass
class RunArguments:
    """How the command runs, apart from the training itself."""

    _argument_group_name = "run"

    config: str | None = field(
        default=None, metadata={"help": "YAML file of options; flags take precedence over it."}
    )
    dry_run: bool = field(
        default=False,
        metadata={
            "help": "Take four steps and a batch of each set, estimate the time, and keep nothing."
        },
    )
    eval_ood: str = field(
        default="end",
        metadata={
            "help": "When to measure the sets that are out of distribution: at the end only, or "
            "also whenever training measures dev, which it does after each epoch by default.",
            "choices": ["end", "epoch"],
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after so many evaluations in a row without a better "
            "--metric_for_best_model; the best model is then kept."
        },
    )
    overwrite: bool = field(
        default=False,
        metadata={
            "help": "Replace the run that --output_dir holds.",
            "aliases": ["--overwrite_output_dir"],
        },
    )
    keep_optimizer_states: bool = field(
        default=False,
        metadata={
            "help": "Leave the optimizer states in the checkpoints of a finished run, so that it "
            "can be trained for more epochs."
        },
    )

    def __post_init__(self) -> None:
        patience = self.early_stopping_patience
        if patience is not None and patience < 1:
            raise ValueError(f"early_stopping_patience is {patience}: give 1 or more")
