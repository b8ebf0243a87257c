"""Measure any classifier checkpoint, ours or not, on a task's sets or on your own files.

    python -m masktuning.evaluate --model_name_or_path out --task sst2 --data_dir DATA
    python -m masktuning.evaluate --model_name_or_path out --task mnli --sets hans anli_r1
    python -m masktuning.evaluate --model_name_or_path out --task sst2 --protocol paper-like
    python -m masktuning.evaluate --model_name_or_path out --eval_files reviews=reviews.csv

Several seeds' results (folders of runs, or of --output_dir) as mean and standard deviation, and
the paired difference to other runs with the same seeds, in the same order:

    python -m masktuning.evaluate --combine mt-1 mt-2 mt-3 --against plain-1 plain-2 plain-3

Texts are classified as they are, without masking. With --output_dir the results are written as
results.json and each set's predicted labels as predictions_<set>.jsonl.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError, check_names
from masktuning.config.files import make, write, write_json
from masktuning.config.options import DataArguments
from masktuning.config.parser import build_parser, parse, run_command
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.data.labels import model_labels
from masktuning.evaluation.aggregate import combine
from masktuning.tasks import PROTOCOLS, SetSpec, Task, load_task

if TYPE_CHECKING:
    from masktuning.evaluation.metrics import SetResult
    from masktuning.evaluation.scoring import Scored

PROGRAM = "python -m masktuning.evaluate"
_LENGTH = 128


@dataclass
class EvaluationArguments:
    """What to measure, and how."""

    _argument_group_name = "evaluation"

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Checkpoint folder or hub id."}
    )
    sets: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets of the task, or what several names begin with; by default all."},
    )
    protocol: list[str] = field(
        default_factory=list,
        metadata={"help": "Only the sets of: standard (the literature's), paper-like."},
    )
    max_seq_length: int | None = field(
        default=None,
        metadata={
            "help": "Longer texts are truncated; by default the task's, and 512 for reviews."
        },
    )
    label_names: list[str] = field(
        default_factory=list,
        metadata={"help": "The model's labels in its ids' order, if its config.json has none."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Batch size."})
    output_dir: str | None = field(default=None, metadata={"help": "Where to write results."})
    combine: list[str] = field(
        default_factory=list, metadata={"help": "Folders with results, one a seed."}
    )
    against: list[str] = field(
        default_factory=list, metadata={"help": "As many, to take the paired difference to."}
    )


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [EvaluationArguments, DataArguments])
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        return
    arguments, data = parse(parser, argv, {})
    if arguments.output_dir:
        make(Path(arguments.output_dir))
    if arguments.combine or arguments.against:
        print(combine(arguments.combine, arguments.against, arguments.output_dir))
        return
    if data.train_file or data.validation_file or data.dataset_name:
        raise UsageError("evaluate measures --task or --eval_files; it takes no training data")
    if (arguments.sets or arguments.protocol) and not data.task:
        raise UsageError("--sets and --protocol name sets of a --task")
    if arguments.sets and arguments.protocol:
        raise UsageError("--sets and --protocol exclude each other: give one")
    if data.task and not data.eval_files and (data.text_column_names or data.label_column_name):
        raise UsageError("--text_column_names and --label_column_name go with --eval_files")
    length, batch = arguments.max_seq_length, arguments.per_device_eval_batch_size
    if (length is not None and length < 1) or batch < 1:
        raise UsageError("--max_seq_length and --per_device_eval_batch_size must be 1 or more")
    evaluate(arguments, data)


def evaluate(arguments: EvaluationArguments, data: DataArguments) -> list[SetResult]:
    """Prints the tables and returns their rows.

    Raises:
        UsageError: on data or a model that cannot be used, or labels that do not agree.
    """
    from masktuning.data.load import load_texts
    from masktuning.data.tokenize import EncodedSet, encode, length_limit
    from masktuning.evaluation.predict import evaluate_sets, load_classifier
    from masktuning.evaluation.tables import details_table, text_table

    name = arguments.model_name_or_path
    if name is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")
    known = with_eval_files(load_task(data.task), data) if data.task else None
    sets = [] if known is None else wanted_sets(known, arguments.sets, arguments.protocol)
    trainer, model, tokenizer = load_classifier(name, arguments.per_device_eval_batch_size)
    config: Any = model.config
    labels = arguments.label_names or [config.id2label[i] for i in range(config.num_labels)]
    if len(labels) != config.num_labels:
        raise UsageError(f"--label_names: {len(labels)}, but the model has {config.num_labels}")
    if known:
        labels = model_labels(labels, known.labels)
        task = replace(known, sets=sets)
    else:
        task = own_task(data, labels)
    named = [spec for spec in task.sets if spec.name in arguments.sets]
    required = {name for spec in named for name in [spec.name, *spec.combines]}
    texts = load_texts(task.sets, labels, data.data_dir, required)
    if not texts:
        raise UsageError("none of these sets is there")
    longest = length_limit(model, config, tokenizer)
    scores: dict[str, Scored] = {}
    protocols: dict[str, list[str]] = {}
    usual = int(task.settings.get("max_seq_length", _LENGTH))
    for length in lengths(task, usual, arguments.max_seq_length, longest):
        more = bool(scores)  # than the usual length: for the sets that ask for it
        at = [t for t in texts if not more or length in task.named(t.name).lengths]
        encoded = [
            EncodedSet(
                one, encode(one, tokenizer, min(length, longest), data.preprocessing_num_workers)
            )
            for one in (t.first(data.max_eval_samples) for t in at)
        ]
        found = evaluate_sets(trainer, encoded, task, labels)
        suffix = f"_{length}" if more else ""
        for key, one in found.items():
            result = replace(one.result, name=f"{key}{suffix}")
            scores[result.name] = replace(one, result=result)
            protocols[result.name] = task.named(key).protocols
    results = [one.result for one in scores.values()]
    if not arguments.protocol:
        print(text_table(results))
    for protocol in arguments.protocol:
        chosen = [one for one in results if protocol in protocols[one.name]]
        print(f"{protocol}:\n{text_table(chosen)}\n")
    if details := details_table(results):
        print(f"\n{details}")
    if arguments.output_dir:
        _write(Path(arguments.output_dir), scores)
    return results


def wanted_sets(task: Task, names: list[str], protocols: list[str]) -> list[SetSpec]:
    """The sets of these names or protocols (all but training sets where none is given), those that
    they combine, and the user's own files.

    A name that several begin with stands for them: anli_r1 for anli_r1_dev and anli_r1_test.

    Raises:
        UsageError: on a name or protocol that is not there.
    """
    known = [spec.name for spec in task.sets]
    groups = {name: [one for one in known if one.startswith(f"{name}_")] for name in names}
    check_names([n for n in names if n in known or not groups[n]], set(known), "set")
    check_names(protocols, set(PROTOCOLS), "protocol")
    if not names and not protocols:
        return [spec for spec in task.sets if spec.role != "train"]
    chosen = {one for name in names for one in ([name] if name in known else groups[name])}
    chosen |= {spec.name for spec in task.sets if set(protocols) & set(spec.protocols)}
    if not chosen:
        raise UsageError(f"no set of {task.name} is of {' or '.join(protocols)}")
    parts = {part for spec in task.sets if spec.name in chosen for part in spec.combines}
    return [spec for spec in task.sets if spec.name in chosen | parts or spec.own_file]


def lengths(task: Task, usual: int, asked: int | None, longest: int) -> list[int]:
    """At how many tokens to measure: all sets at the first, those that list them at the others."""
    if asked is not None:
        return [asked]
    more = sorted({n for spec in task.sets for n in spec.lengths if n > usual})
    for length in (n for n in more if n > longest):
        print(f"not measured at {length} tokens: the model takes {longest}", file=sys.stderr)
    return [usual, *(n for n in more if n <= longest)]


def _write(folder: Path, scores: dict[str, Scored]) -> None:
    metrics = {k: v for one in scores.values() for k, v in one.result.as_metrics().items()}
    write_json(folder / "results.json", metrics)
    for name, one in scores.items():
        lines = [
            json.dumps({"example_id": i, "label": one.labels[k]}) for i, k in enumerate(one.chosen)
        ]
        write(folder / f"predictions_{name}.jsonl", "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_command(main)
