"""Evaluate any classifier checkpoint, of this package or not, on a task's sets or your own files.

    python -m masktuning.evaluate --model_name_or_path out --task sst2 --data_dir DATA
    python -m masktuning.evaluate --model_name_or_path out --task mnli --sets hans anli_r1
    python -m masktuning.evaluate --model_name_or_path out --task sst2 --protocol paper-like
    python -m masktuning.evaluate --model_name_or_path out --eval_files reviews=reviews.csv
    python -m masktuning.evaluate --model_name_or_path out --test_file new.csv --output_dir out

A language model that is shown examples of the training set, and what asking it would cost:

    python -m masktuning.evaluate --predictor fewshot --fewshot_model gpt2 --task mnli --dry_run

The mean and standard deviation of several seeds (folders of runs, or of --output_dir), and the
paired differences to a baseline's runs with the same seeds in the same order:

    python -m masktuning.evaluate --combine mt-1 mt-2 mt-3 --baseline plain-1 plain-2 plain-3

Texts are classified as they are, without masking. With --output_dir the results are written to
results.json, what was predicted for each text of a set to predictions_<set>.jsonl (for --test_file,
which needs no labels, to predictions_test_file.jsonl), and the results of --combine to
combined.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.files import make
from masktuning.config.imports import heavy_imports
from masktuning.config.options import ClassifierArguments, DataArguments
from masktuning.config.parser import (
    build_parser,
    known_names,
    parse,
    run_command,
    underscored,
    wants_help,
)
from masktuning.config.translate import translated
from masktuning.evaluation.fewshot.options import FewShotArguments, check_flags

PROGRAM = "python -m masktuning.evaluate"


@dataclass
class EvaluationArguments(ClassifierArguments):
    """What to evaluate, and how."""

    _argument_group_name = "evaluation"

    predictor: str = field(
        default="classifier",
        metadata={
            "help": "What labels the texts: a trained classifier, or a language model that is "
            "shown a few solved examples.",
            "choices": ["classifier", "fewshot"],
        },
    )
    sets: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the task's sets, or how they begin; by default all but train."},
    )
    protocol: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets of these protocols: standard (as in the literature), paper-like."},
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Tokens to truncate texts to; by default the task's, and also 512 for reviews."
        },
    )
    output_dir: str | None = field(default=None, metadata={"help": "Folder for the results."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bars."})
    quiet: bool = field(
        default=False, metadata={"help": "Show no progress bars and no warnings, only the table."}
    )
    combine: list[str] = field(
        default_factory=list, metadata={"help": "Folders with results, one per seed."}
    )
    baseline: list[str] = field(
        default_factory=list,
        metadata={"help": "As many folders in the same order, for paired differences."},
    )


def main(argv: list[str]) -> None:
    groups = [EvaluationArguments, DataArguments, FewShotArguments]
    parser = build_parser(PROGRAM, __doc__ or "", groups)
    if wants_help(argv):
        parser.print_help()
        return
    argv, _ = translated(underscored(argv), {}, known_names(parser))
    arguments, data, few_shot = parse(parser, argv, {})
    given = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    check_flags(arguments.predictor, given, few_shot, data, arguments.output_dir)
    if arguments.output_dir:
        make(Path(arguments.output_dir))
    if arguments.combine or arguments.baseline:
        from masktuning.evaluation.aggregate import combine

        print(combine(arguments.combine, arguments.baseline, arguments.output_dir))
        return
    _check(arguments, data)
    with heavy_imports():
        from masktuning.evaluation.quiet import less_output
        from masktuning.evaluation.run import EvaluationJob, evaluate

        if arguments.predictor == "fewshot":
            from masktuning.evaluation.fewshot.run import evaluate_few_shot

    job = EvaluationJob(
        model=arguments.model_name_or_path or few_shot.fewshot_model,
        data=data,
        sets=arguments.sets,
        protocols=arguments.protocol,
        max_seq_length=arguments.max_seq_length,
        label_names=arguments.label_names,
        batch_size=arguments.per_device_eval_batch_size,
        output_dir=arguments.output_dir,
        tokenizer_name=arguments.tokenizer_name,
        revision=arguments.model_revision,
        progress=not (arguments.disable_tqdm or arguments.quiet),
        measures=bool(data.task or data.eval_files or data.validation_file or not data.test_file),
        predicts=bool(data.test_file),
    )
    with less_output(job.progress, warnings=not arguments.quiet):
        if arguments.predictor == "fewshot":
            evaluate_few_shot(job, few_shot, shows_cost=not arguments.quiet)
        else:
            evaluate(job)


def _check(arguments: EvaluationArguments, data: DataArguments) -> None:
    """Raises UsageError for flags that exclude each other, are missing, or are out of range."""
    prompted = arguments.predictor == "fewshot"
    if not prompted and (data.train_file or data.validation_file or data.dataset_name):
        raise UsageError("evaluate takes --task or --eval_files; it takes no training data")
    for name in ("preset", "dataset_config_name", "max_train_samples"):
        if not prompted and getattr(data, name) is not None:
            raise UsageError(f"--{name} is for training; evaluate has no use for it")
    if data.test_file and not (arguments.output_dir or prompted):
        raise UsageError("--test_file needs --output_dir: the folder for its predictions")
    if (arguments.sets or arguments.protocol) and not data.task:
        raise UsageError("--sets and --protocol choose sets of a task: give --task too")
    if arguments.sets and arguments.protocol:
        raise UsageError("--sets and --protocol exclude each other: give one")
    own = data.eval_files or data.test_file
    if data.task and not own and (data.text_column_names or data.label_column_name):
        raise UsageError(
            "--text_column_names and --label_column_name go with --eval_files or --test_file"
        )
    length, batch = arguments.max_seq_length, arguments.per_device_eval_batch_size
    if (length is not None and length < 1) or batch < 1:
        raise UsageError("--max_seq_length and --per_device_eval_batch_size must be 1 or more")
    if not prompted and arguments.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")


if __name__ == "__main__":
    run_command(main)
