"""Everything that one training run was asked for, and how it is read from flags and files."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import (
    FlagParser,
    build_parser,
    known_names,
    parse,
    read_yaml,
    underscored,
)
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.tasks import Task, load_task

if TYPE_CHECKING:
    from masktuning.training.arguments import MaskTuningArguments

# Where we differ from TrainingArguments for this command; a task's settings come on top.
DEFAULTS = {
    "eval_strategy": "epoch",
    "save_steps": 0.1,  # of the run, so that a killed one has something to go on from
    "save_total_limit": 2,
    "per_device_eval_batch_size": 64,
}


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """Everything the command line and the YAML file said."""

    model: ModelArguments
    data: DataArguments
    training: MaskTuningArguments
    run: RunArguments
    task: Task
    chosen: set[str]
    """Names that the task, the file or a flag gave."""
    embedded: Path
    """The checkpoint that a generated task starts from where no other is named."""


def read_job(arguments: list[str], embedded: Path) -> TrainingJob:
    """Defaults, then the task's settings, then the YAML file, then the flags.

    Raises:
        UsageError: on anything in them that does not fit.
    """
    argv = underscored(arguments)
    early = FlagParser()
    early.add_argument("--task", "--task_name")
    early.add_argument("--config")
    early.add_argument("--train_file")
    early.add_argument("--dataset_name")
    first, _ = early.parse_known_args(argv)
    file = read_yaml(first.config) if first.config else {}
    name = first.task or file.get("task")
    own = first.train_file or file.get("train_file")
    hub = first.dataset_name or file.get("dataset_name")
    if sum(map(bool, (name, own, hub))) > 1:
        raise UsageError("--task, --train_file and --dataset_name exclude each other: give one")
    if name and not name.endswith((".yaml", ".yml")):
        load_task(name)  # a wrong name is told before seconds of imports

    from masktuning.training.arguments import MaskTuningArguments

    groups = [ModelArguments, DataArguments, MaskTuningArguments, RunArguments]
    parser = build_parser(None, "", groups)
    task = None if own or hub else load_task(name or "demo", known_names(parser))
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":  # without a value: the newest one
            action.nargs, action.const = "?", "last"
    settings = {} if task is None else task.settings
    defaults = {**DEFAULTS, **settings, **file}
    words = {word.split("=")[0] for word in argv}
    chosen = {a.dest for a in parser._actions if words & set(a.option_strings)} | set(defaults)
    if "output_dir" not in chosen:
        if any(word.startswith("--resume_from_checkpoint") for word in argv):
            raise UsageError(
                "--resume_from_checkpoint needs --output_dir (or --config): which run?"
            )
        defaults["output_dir"] = _default_folder(task, argv, defaults)
    model, data, training, run = parse(parser, argv, defaults)
    _check_data_flags(data, task)
    task = own_task(data) if task is None else with_eval_files(task, data)
    if model.model_name_or_path is None and not task.generated:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")
    return TrainingJob(model, data, training, run, task, chosen, embedded)


def _check_data_flags(data: DataArguments, task: Task | None) -> None:
    """Raises UsageError for a data flag that would have no effect, or one that is missing."""
    if data.train_file and not data.validation_file:
        raise UsageError("--validation_file is missing: the in-distribution set to measure on")
    if data.validation_file and not data.train_file:
        raise UsageError("--train_file is missing: --validation_file goes with it")
    if task is None:
        return
    if data.task is None and data.eval_files:
        raise UsageError("--train_file or --task is missing: what to train on")
    if (data.text_column_names or data.label_column_name) and not data.eval_files:
        raise UsageError("--text_column_names and --label_column_name go with files of your own")
    data.task = data.task or task.name


def _default_folder(task: Task | None, argv: list[str], defaults: dict[str, Any]) -> str:
    early = FlagParser()
    early.add_argument("--method", default=defaults.get("method", "mask_tuning"))
    method = early.parse_known_args(argv)[0].method
    name = Path(task.name).stem if task else "own"
    return str(Path("runs") / f"{name}-{method}-{time.strftime('%Y%m%d-%H%M%S')}")
