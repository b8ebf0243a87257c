"""Measure any classifier checkpoint, ours or not, on a task's sets or on your own files.

    python -m masktuning.evaluate --model_name_or_path out --task sst2 --data_dir DATA
    python -m masktuning.evaluate --model_name_or_path out --task sst2 --sets dev imdb_cad_dev
    python -m masktuning.evaluate --model_name_or_path out --eval_files reviews=reviews.csv

Texts are classified as they are, without masking. With --output_dir the results are written as
results.json and each set's predicted labels as predictions_<set>.jsonl.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning import run_folder
from masktuning.command_line import build_parser, parse, run_command
from masktuning.config import DataArguments, UsageError, check_names
from masktuning.labels import model_labels
from masktuning.own_task import own_task, with_eval_files
from masktuning.tasks import load_task

if TYPE_CHECKING:
    from masktuning.metrics import SetResult

PROGRAM = "python -m masktuning.evaluate"


@dataclass
class EvaluationArguments:
    """What to measure, and how."""

    _argument_group_name = "evaluation"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or hub id."}
    )
    sets: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets of the task; by default all but the training set."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer texts are truncated."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size."})
    output_dir: str | None = field(default=None, metadata={"help": "Where to write results."})


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [EvaluationArguments, DataArguments])
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        return
    arguments, data = parse(parser, argv, {})
    if data.train_file or data.validation_file or data.dataset_name:
        raise UsageError("evaluate measures --task or --eval_files; it takes no training data")
    if arguments.sets and not data.task:
        raise UsageError("--sets names sets of a --task")
    if data.task and not data.eval_files and (data.text_column_names or data.label_column_name):
        raise UsageError("--text_column_names and --label_column_name go with --eval_files")
    if arguments.max_seq_length < 1 or arguments.per_device_eval_batch_size < 1:
        raise UsageError("--max_seq_length and --per_device_eval_batch_size must be 1 or more")
    if arguments.output_dir and Path(arguments.output_dir).is_file():
        raise UsageError(f"{arguments.output_dir}: is a file; give a folder")
    evaluate(arguments, data)


def evaluate(arguments: EvaluationArguments, data: DataArguments) -> list[SetResult]:
    """Prints the table and returns its rows.

    Raises:
        UsageError: on data or a model that cannot be used, or labels that do not agree.
    """
    from masktuning.data import encode, length_limit, load_texts
    from masktuning.prediction import evaluate_set, load_classifier
    from masktuning.report import text_table

    name = arguments.model_name_or_path
    if name is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")
    trainer, model, tokenizer = load_classifier(name, arguments.per_device_eval_batch_size)
    config: Any = model.config
    labels = [config.id2label[i] for i in range(config.num_labels)]
    if data.task:
        task = with_eval_files(load_task(data.task), data)
        check_names(arguments.sets, {spec.name for spec in task.sets}, "set")
        labels = model_labels(labels, task.labels)
    else:
        task = own_task(data, labels)
    specs = [
        spec
        for spec in task.sets
        if spec.name in arguments.sets or (not arguments.sets and spec.role != "train")
    ]
    limit = min(arguments.max_seq_length, length_limit(model, config, tokenizer))
    results, chosen = [], {}
    for texts in load_texts(specs, labels, data.data_dir, required=bool(arguments.sets)):
        wanted = texts.first(data.max_eval_samples)
        encoded = encode(wanted, tokenizer, limit, data.preprocessing_num_workers)
        result, chosen[texts.name] = evaluate_set(trainer, texts.name, texts.role, encoded)
        results.append(result)
    print(text_table(results))
    if arguments.output_dir:
        _write(Path(arguments.output_dir), results, chosen, labels)
    return results


def _write(folder: Path, results: list[SetResult], chosen: Any, labels: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {key: value for result in results for key, value in result.as_metrics().items()}
    run_folder.write_json(folder / "results.json", metrics)
    for name, ids in chosen.items():
        lines = [json.dumps({"example_id": i, "label": labels[k]}) for i, k in enumerate(ids)]
        run_folder.write(folder / f"predictions_{name}.jsonl", "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_command(main)
