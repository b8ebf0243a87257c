"""One run of `python -m masktuning.evaluate`: load, predict, score, print and write."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.data.labels import model_labels
from masktuning.data.load import LabelledTexts, load_texts
from masktuning.data.tokenize import EncodedSet, encode_all, length_limit
from masktuning.data.unlabelled import load_test
from masktuning.evaluation.choice import wanted_lengths, wanted_sets
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.predict import evaluate_sets, predict, predictor
from masktuning.evaluation.results import write_predictions, write_results
from masktuning.evaluation.scoring import Scored
from masktuning.evaluation.tables import details_table, text_table
from masktuning.modeling.loading import check_vocabulary, load_classifier
from masktuning.tasks import SetSpec, Task, load_task

_USUAL_LENGTH = 128


@dataclass(frozen=True)
class EvaluationJob:
    """Everything that one evaluation was asked for."""

    model: str
    """Checkpoint folder or hub id."""
    data: DataArguments
    sets: list[str]
    """Names of the task's sets, or what their names begin with; see `wanted_sets`."""
    protocols: list[str]
    max_seq_length: int | None
    """Length, in tokens, at which longer texts are truncated; None for the task's own lengths."""
    label_names: list[str]
    """The model's label names in the order of its ids; empty for those of its config.json."""
    batch_size: int
    output_dir: str | None
    tokenizer_name: str | None = None
    """Folder or hub id of a tokenizer other than the model's."""
    revision: str | None = None
    """The model's version on the hub; None for the latest."""
    progress: bool = True
    """Whether to show progress bars."""
    measures: bool = True
    """Whether to measure the sets."""
    predicts: bool = False
    """Whether to predict the labels of --test_file; that needs an output_dir."""
    use_cpu: bool = False


@dataclass(frozen=True)
class Measured:
    """The scores of one set at one length; the name of the result may end in the length."""

    spec: SetSpec
    scored: Scored


def evaluate(job: EvaluationJob) -> list[SetResult]:
    """Evaluates a classifier, prints the tables, writes the files, and returns the results.

    Raises:
        UsageError: if data or model cannot be used, or the model's labels are not the task's.
    """
    task = _task(job)  # first, so that a wrong flag is reported before the model is loaded
    model, tokenizer = load_classifier(job.model, job.tokenizer_name, job.revision)
    if job.tokenizer_name is not None:
        check_vocabulary(tokenizer, model.config)
    labels = label_names(job.model, model.config, job.label_names)
    if job.data.task:
        labels = model_labels(labels, task.labels)
    else:
        task = replace(task, labels=labels)
    texts = load_sets(job, task, labels) if job.measures else []
    test = load_test(job.data, task) if job.predicts else None
    trainer = predictor(model, tokenizer, job.batch_size, job.progress, job.use_cpu)
    longest = length_limit(model, model.config, tokenizer)
    usual = int(task.settings.get("max_seq_length", _USUAL_LENGTH))
    if test is not None:
        length = min(job.max_seq_length or usual, longest)
        ((_, data),) = encode_all([test], tokenizer, length, job.data.preprocessing_num_workers)
        logits = predict(trainer, data)
        path = write_predictions(Path(str(job.output_dir)), test, logits, labels)
        print(f"{path}: the predicted labels of {len(test)} texts")
    if not job.measures:
        return []
    measured: list[Measured] = []
    for i, length in enumerate(wanted_lengths(task, usual, job.max_seq_length, longest)):
        here = [one for one in texts if i == 0 or length in task.named(one.name).lengths]
        encoded = _encode(job, here, tokenizer, min(length, longest))
        scores = evaluate_sets(trainer, encoded, task, labels)
        measured += _with_ending(task, scores, f"_{length}" if i else "")
    return report(job, measured)


def report(job: EvaluationJob, measured: list[Measured]) -> list[SetResult]:
    """Prints the tables, writes the files if there is a folder for them, returns the results."""
    _print(job, measured)
    if job.output_dir:
        write_results(Path(job.output_dir), [one.scored for one in measured])
    return [one.scored.result for one in measured]


def _task(job: EvaluationJob) -> Task:
    """The task that the job names, with only the sets to measure, or one of --eval_files.

    The latter has no labels of its own: they are the model's.
    """
    if not job.data.task:
        if not job.measures:
            return Task("own data", "the user's files or data set", [], [])
        task = own_task(job.data, labels=[])
        return replace(task, sets=[spec for spec in task.sets if spec.role != "train"])
    task = with_eval_files(load_task(job.data.task), job.data)
    return replace(task, sets=wanted_sets(task, job.sets, job.protocols))


def label_names(model: str, config: Any, given: list[str]) -> list[str]:
    """The names of a model's labels in the order of its ids: `given` ones, or its configuration's.

    Raises:
        UsageError: for a model of regression or of several labels at once, and for another number
            of names than labels.
    """
    if config.num_labels == 1:
        raise UsageError(f"{model}: predicts a score (num_labels is 1), and has no labels")
    if config.problem_type == "multi_label_classification":
        raise UsageError(f"{model}: gives a text several labels at once, and not one of them")
    if not given:
        return [config.id2label[i] for i in range(config.num_labels)]
    if len(given) != config.num_labels:
        raise UsageError(f"--label_names: {len(given)}, but the model has {config.num_labels}")
    return given


def load_sets(job: EvaluationJob, task: Task, labels: list[str]) -> list[LabelledTexts]:
    """The texts of the task's sets; a set that the user named may not be missing."""
    named = [spec for spec in task.sets if spec.name in job.sets]
    required = {name for spec in named for name in [spec.name, *spec.union_of]}
    texts = load_texts(task.sets, labels, job.data.data_dir, required)
    if not texts:
        raise UsageError("none of these sets was found")
    return texts


def _encode(
    job: EvaluationJob, texts: list[LabelledTexts], tokenizer: Any, length: int
) -> list[EncodedSet]:
    kept = [one.first(job.data.max_eval_samples) for one in texts]
    workers, overwrite = job.data.preprocessing_num_workers, job.data.overwrite_cache
    return encode_all(kept, tokenizer, length, workers, overwrite)


def _with_ending(task: Task, scores: dict[str, Scored], ending: str) -> list[Measured]:
    """The scores with `ending` added to the names of the results."""
    return [
        Measured(task.named(name), replace(one, result=replace(one.result, name=f"{name}{ending}")))
        for name, one in scores.items()
    ]


def _print(job: EvaluationJob, measured: list[Measured]) -> None:
    """Prints one table per protocol, or one of all sets, and one of the other scores."""
    results = [one.scored.result for one in measured]
    if not job.protocols:
        print(text_table(results))
    for protocol in job.protocols:
        shown = (one for one in measured if protocol in one.spec.protocols or one.spec.own_file)
        in_it = [one.scored.result for one in shown]
        print(f"{protocol}:\n{text_table(in_it)}\n")
    if details := details_table(results):
        print(f"\n{details}")
