"""Everything that one training run was asked for, and how it is read from flags and files."""

from __future__ import annotations

import logging
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError, check_names
from masktuning.config.option_file import read_options
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import (
    FlagParser,
    build_parser,
    known_names,
    parse,
    strategies_in_words,
    underscored,
)
from masktuning.config.translate import translated
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.methods import method_class, names, options_by_method
from masktuning.methods.choice import MethodChoice
from masktuning.tasks import Task, load_task
from masktuning.training.parts import (
    CHOICES,
    Given,
    matching_defaults,
    take_up,
    upload_at_the_end,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from masktuning.data.load import LabelledTexts
    from masktuning.modeling.shared_encoder import MaskTuningModel
    from masktuning.training.arguments import MethodArguments

logger = logging.getLogger(__name__)

# Defaults of the command that differ from TrainingArguments'. A task's settings override them.
DEFAULTS = {
    "eval_strategy": "epoch",
    "save_steps": 0.1,  # of the run, so that a killed one has something to go on from
    "save_total_limit": 2,
    "per_device_eval_batch_size": 64,
}


@dataclass(frozen=True)
class Inputs:
    """What a run starts from: the texts of its sets, and a model with its tokenizer."""

    texts: list[LabelledTexts]
    model: MaskTuningModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class TrainingJob:
    """What the flags, the YAML file and the task said about one run."""

    model: ModelArguments
    data: DataArguments
    training: MethodArguments
    run: RunArguments
    task: Task
    chosen: set[str]
    """The names of the options that the task, the file or a flag gave."""
    embedded: Path
    """The checkpoint that a generated task starts from where no other is named."""
    start: Path | None = None
    """The checkpoint of an earlier stage that training starts from, in place of the model."""
    loaded: list[Inputs] = field(default_factory=list, compare=False, repr=False)
    """The inputs, if they were loaded for a check before the run; the run takes them from here."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(str(self.training.output_dir))

    def check_processes(self) -> None:
        """Raises UsageError where several processes would each choose a folder of their own."""
        if self.training.world_size > 1 and "output_dir" not in self.chosen:
            raise UsageError(
                "give --output_dir: the default name holds the time, which differs between "
                "processes"
            )


def read_job(arguments: list[str], embedded: Path, warn: bool = True) -> TrainingJob:
    """The job of the flags `arguments`, which take precedence over the YAML file and the task.

    Args:
        arguments: the words of the command line.
        embedded: the checkpoint of generated tasks.
        warn: whether to name options that the method does not have.

    Raises:
        UsageError: for an invalid option.
    """
    argv = underscored(arguments)
    early = _read_early(argv)
    file = read_options(early.config) if early.config else {}
    name = _task_name(early, file)
    task = None if name is None else load_task(name)
    preset = early.preset or file.get("preset")
    settings = _settings(task, preset)
    method = early.method or file.get("method") or settings.get("method") or MethodChoice.method
    settings = _settings(task, preset, method)
    # Seconds of imports, after the errors that need none. The operations come first: to register
    # one, torch searches all modules there are, and transformers brings two thousand.
    import masktuning.ops  # noqa: F401
    from masktuning.training.arguments import MaskTuningArguments, arguments_for

    # The parser reports an unknown method.
    training_class = arguments_for(method) if method in names() else MaskTuningArguments
    groups = [ModelArguments, DataArguments, training_class, RunArguments]
    parser = build_parser(None, "", groups)
    others = _options_of_others(known_names(parser))
    allowed = known_names(parser) | others
    if name is not None and not settings.keys() <= allowed:
        load_task(name, allowed)  # raises, naming the line of the unknown setting
    for action in parser._actions:
        if action.dest == "resume_from_checkpoint":  # without a value it is the newest one
            action.nargs, action.const = "?", "last"
    argv, file = translated(argv, file, allowed)
    argv, file, unused = _without_others(argv, file, others)
    if unused and warn:
        logger.warning("warning: %s has no %s", method, "; no ".join(map(_with_owners, unused)))
    own_settings = {k: v for k, v in settings.items() if k not in others}
    given = Given({**settings, **file}, early)
    defaults = {**DEFAULTS, **own_settings, **file, **matching_defaults(given, DEFAULTS, warn)}
    words = {word.split("=")[0] for word in argv}
    chosen = {a.dest for a in parser._actions if words & set(a.option_strings)} | set(defaults)
    if "output_dir" not in chosen:
        if any(word.startswith("--resume_from_checkpoint") for word in argv):
            raise UsageError(
                "--resume_from_checkpoint needs --output_dir (or --config): which run?"
            )
        defaults["output_dir"] = _default_folder(task, method if given.trains else "measured")
    model, data, training, run = parse(parser, argv, defaults)
    _check_training_flags(training, chosen)
    upload_at_the_end(training, chosen)
    take_up(given, training, data)
    task = _complete(task, data, training if given.trains else None)
    if model.model_name_or_path is None and not task.generated:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")
    return TrainingJob(model, data, training, run, task, chosen, embedded)


def task_settings(arguments: list[str], method: str) -> dict[str, Any]:
    """The settings that the task of a command line has for a method; empty without a task."""
    early = _read_early(underscored(arguments))
    file = read_options(early.config) if early.config else {}
    name = _task_name(early, file)
    task = None if name is None else load_task(name)
    return _settings(task, early.preset or file.get("preset"), method)


def _settings(task: Task | None, preset: str | None, method: str | None = None) -> dict[str, Any]:
    """The settings of the task, overridden by those for the method and then by the preset's."""
    if preset and task is None:
        raise UsageError("--preset goes with --task: files of your own have no presets")
    if task is None:
        return {}
    check_names(list(task.methods), set(names()), "method in the task")
    return strategies_in_words(task.settings_of(preset, method))


def _complete(task: Task | None, data: DataArguments, training: MethodArguments | None) -> Task:
    """The task with the user's files, or one made of them; without `training`, only to evaluate."""
    _check_data_flags(data, task, training is not None)
    if task is not None:
        task = with_eval_files(task, data)
    elif training is not None:
        task = own_task(data)
    else:  # labelled by the classifier
        task = Task("own data", "the user's files or data set", [], [])
    if training is not None:
        _check_method(training, task)
    return task


def _check_method(training: MethodArguments, task: Task) -> None:
    """Raises UsageError if the method cannot train on the task."""
    from masktuning.training.arguments import method_options  # torch is imported by now

    pairs = len(task.with_role("train")[0].text) == 2
    method = method_class(training.method)
    if training.torch_compile and not method.compiles:
        raise UsageError(
            f"--torch_compile does not go with {training.method}, which changes the layers in "
            "every step: leave it out"
        )
    method.check_task(method_options(training), pairs, task.labels)


def read_method(arguments: list[str]) -> str | None:
    """The method that the flags name, or the YAML file that they name."""
    early = _read_early(underscored(arguments))
    return early.method or (read_options(early.config).get("method") if early.config else None)


def _read_early(argv: Sequence[str]) -> Namespace:
    """The flags that decide which others there are."""
    parser = FlagParser()
    parser.add_argument("--task", "--task_name")
    for name in ("config", "train_file", "dataset_name", "method", "preset"):
        parser.add_argument(f"--{name}")
    for name in CHOICES:
        parser.add_argument(f"--{name}", nargs="?", const=True)
    return parser.parse_known_args(argv)[0]


def _task_name(early: Namespace, file: Mapping[str, Any]) -> str | None:
    """The task to load, or None for data of the user's own."""
    name = early.task or file.get("task")
    own = early.train_file or file.get("train_file")
    hub = early.dataset_name or file.get("dataset_name")
    if sum(map(bool, (name, own, hub))) > 1:
        raise UsageError("--task, --train_file and --dataset_name exclude each other: give one")
    if not Given(file, early).trains:
        return name
    return None if own or hub else name or "demo"


def _options_of_others(known: set[str]) -> set[str]:
    """The options of other methods that this run does not have."""
    return {option for options in options_by_method().values() for option in options - known}


def _with_owners(option: str) -> str:
    """An option with the methods that it belongs to."""
    owners = [name for name, options in options_by_method().items() if option in options]
    return f"--{option}, an option of {', '.join(owners)}: it is not used"


def _without_others(
    argv: Sequence[str], file: Mapping[str, Any], others: set[str]
) -> tuple[list[str], dict[str, Any], list[str]]:
    """The flags and the file without the options of other methods, and the names of those."""
    parser = FlagParser()
    for option in sorted(others):
        parser.add_argument(f"--{option}", nargs="?", const=True)
    found, rest = parser.parse_known_args(argv)
    unused = {k for k, v in vars(found).items() if v is not None} | (file.keys() & others)
    return rest, {k: v for k, v in file.items() if k not in others}, sorted(unused)


def _check_training_flags(training: MethodArguments, chosen: set[str]) -> None:
    """Raises UsageError for a flag of Trainer's that is of no use; warns of one without effect."""
    if training.prediction_loss_only:
        raise UsageError("--prediction_loss_only leaves nothing to measure the accuracy by")
    if not training.eval_do_concat_batches:
        raise UsageError(
            "--eval_do_concat_batches false leaves the predictions in batches, which no accuracy "
            "is computed from: leave it out"
        )
    if training.label_names:
        raise UsageError(
            "--label_names is for evaluate: here the labels have the names that the task or the "
            "training file gives them"
        )
    if "eval_steps" in chosen and training.eval_strategy != "steps":
        logger.warning("warning: --eval_steps has an effect only with --eval_strategy steps")


def _check_data_flags(data: DataArguments, task: Task | None, trains: bool) -> None:
    """Raises UsageError for a data flag that would have no effect, or one that is missing."""
    if not trains:
        return
    if data.train_file and not data.validation_file:
        raise UsageError("--validation_file is missing: the in-distribution set to measure on")
    files = [Path(one).resolve() for one in (data.train_file, data.validation_file) if one]
    if len(set(files)) < len(files):
        raise UsageError(
            "--validation_file and --train_file are the same file: what was trained on says "
            "nothing about other texts"
        )
    if data.validation_file and not data.train_file:
        raise UsageError("--train_file is missing: --validation_file goes with it")
    if task is None:
        return
    if data.task is None and (data.eval_files or data.test_file):
        raise UsageError("--train_file or --task is missing: what to train on")
    own = data.eval_files or data.test_file
    if (data.text_column_names or data.label_column_name) and not own:
        raise UsageError("--text_column_names and --label_column_name go with files of your own")
    data.task = data.task or task.name


def _default_folder(task: Task | None, method: str) -> str:
    name = Path(task.name).stem if task else "own"
    return str(Path("runs") / f"{name}-{method}-{time.strftime('%Y%m%d-%H%M%S')}")
