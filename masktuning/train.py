"""Train a text classifier, measure it in and out of distribution, keep it as a plain checkpoint.

The embedded demo, on a laptop, offline:

    python -m masktuning.train

SST-2 from the hub, with the paper's settings, tested on the edited IMDB reviews too (as files):

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base
    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --data_dir DATA

The baseline, through the same trainer:

    python -m masktuning.train --task sst2 --model_name_or_path roberta-base --method finetuning

Your own files (CSV, TSV, JSONL or Parquet), with an out-of-domain set beside:

    python -m masktuning.train --model_name_or_path roberta-base --alpha 0.3 --output_dir out \\
        --train_file train.csv --validation_file dev.csv --eval_files reviews=reviews.csv

Two GPUs; go on after a stop:

    torchrun --nproc_per_node=2 -m masktuning.train --task sst2 ... --output_dir out
    python -m masktuning.train --config out/config.yaml --resume_from_checkpoint

The demo goes on with --output_dir and --resume_from_checkpoint.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning.command_line import (
    FlagParser,
    build_parser,
    known_names,
    parse,
    run_command,
    underscored,
)
from masktuning.config import (
    DataArguments,
    MethodArguments,
    ModelArguments,
    RunArguments,
    UsageError,
    read_yaml,
)
from masktuning.installed import import_datasets
from masktuning.own_task import own_task, with_eval_files
from masktuning.tasks import Task, load_task, names

if TYPE_CHECKING:
    from masktuning.arguments import MaskTuningArguments

PROGRAM = "python -m masktuning.train"
EPILOG = """\
Every flag of transformers.TrainingArguments works too; the ones used most:
  --output_dir --learning_rate --num_train_epochs --max_steps --warmup_steps --weight_decay --seed
  --per_device_train_batch_size --per_device_eval_batch_size --gradient_accumulation_steps
  --max_grad_norm --bf16 --fp16 --use_cpu --report_to --logging_steps --eval_strategy
  --save_strategy --save_steps --save_total_limit --resume_from_checkpoint --label_smoothing_factor
Tasks: {tasks}; or a YAML file. A task brings its own alpha, batch size, ...; flags win over it.
Without --task and --train_file the demo runs, with plain fine-tuning beside Mask-tuning.
"""
# Where we differ from TrainingArguments for this command; a task's settings come on top.
DEFAULTS = {
    "eval_strategy": "epoch",
    "save_steps": 0.1,  # of the run, so that a killed one has something to go on from
    "save_total_limit": 2,
    "per_device_eval_batch_size": 64,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Everything the command line and the YAML file said."""

    model: ModelArguments
    data: DataArguments
    training: MaskTuningArguments
    run: RunArguments
    task: Task
    chosen: set[str]
    """Names that the task, the file or a flag gave."""


def main(argv: list[str]) -> None:
    if "-h" in argv or "--help" in argv:
        groups = [ModelArguments, DataArguments, MethodArguments, RunArguments]
        epilog = EPILOG.format(tasks=", ".join(names()))
        build_parser(PROGRAM, __doc__ or "", groups, epilog).print_help()
        return
    options = read_options(argv)
    import_datasets()  # said now, before a model is loaded or an earlier run removed
    from masktuning.dry_run import dry_run  # seconds of imports: after the cheap errors
    from masktuning.training_run import run

    runs = [options]
    if options.task.generated and "method" not in options.chosen:
        beside = Path(str(options.training.output_dir)) / "finetuning"
        plain = ["--method", "finetuning", "--output_dir", str(beside)]
        runs.insert(0, read_options([*argv, *plain]))
    if options.run.dry_run:
        for one in runs:
            print(f"{one.task.name}, {one.training.method}:")
            with tempfile.TemporaryDirectory() as folder:
                dry_run(one, folder)
    elif len(runs) > 1:
        from masktuning.comparison import compare

        compare(runs)
    else:
        run(options)


def read_options(arguments: list[str]) -> Options:
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

    from masktuning.arguments import MaskTuningArguments

    groups = [ModelArguments, DataArguments, MaskTuningArguments, RunArguments]
    parser = build_parser(PROGRAM, "", groups)
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
    return Options(model, data, training, run, task, chosen)


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


if __name__ == "__main__":
    run_command(main)
