"""One run of `evaluate --predictor fewshot`: prompts, their cost, answers, scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from masktuning.config.errors import UsageError
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.data.load import LabelledTexts, load_texts
from masktuning.data.unlabelled import load_test
from masktuning.evaluation.choice import wanted_sets
from masktuning.evaluation.fewshot.answers import FILE, AnswerFile
from masktuning.evaluation.fewshot.ask import Request, Scorer, answered, cost
from masktuning.evaluation.fewshot.endpoint import endpoint_scorer
from masktuning.evaluation.fewshot.local import (
    LikelihoodScorer,
    likelihood_scorer,
    load_causal_lm,
)
from masktuning.evaluation.fewshot.options import LOCAL, FewShotArguments
from masktuning.evaluation.fewshot.prompts import demonstrations, prompts, template_of
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.results import write_predictions
from masktuning.evaluation.run import EvaluationJob, Measured, load_sets, report
from masktuning.evaluation.scoring import label_map, score_sets
from masktuning.tasks import SetSpec, Task, load_task


def evaluate_few_shot(
    job: EvaluationJob, options: FewShotArguments, shows_cost: bool = True
) -> list[SetResult]:
    """Measures a language model that sees solved examples before each text; returns the results.

    Prints the cost first, if `shows_cost`. A dry run ends there, with no results.

    Raises:
        UsageError: if data or model cannot be used, a label has too few training examples, a
            prompt is too long, or the endpoint fails.
    """
    task, train_spec = _task(job)
    sets = [one.first(job.data.max_eval_samples) for one in _sets(job, task)]
    test = load_test(job.data, task) if job.predicts else None
    (train,) = load_texts([train_spec], task.labels, job.data.data_dir)
    train = train.first(job.data.max_train_samples)
    requests = {
        one.name: _request(one, _spec(one, task), task, train, options)
        for one in [*sets, *([test] if test else [])]
    }
    scorer = _scorer(job, options)
    known = AnswerFile(Path(job.output_dir) / FILE if job.output_dir else None)
    found = cost([*requests.values()], scorer, known)  # and whether the prompts fit into the model
    if shows_cost or options.dry_run:
        print(f"{found}\n", flush=True)
    if options.dry_run:
        return []
    if isinstance(scorer, LikelihoodScorer):
        scorer.use(load_causal_lm(job.model, job.revision))
    logits = {name: answered(one, scorer, known, job.progress) for name, one in requests.items()}
    if test is not None:
        path = write_predictions(Path(str(job.output_dir)), test, logits[test.name], task.labels)
        print(f"{path}: the predicted labels of {len(test)} texts")
    if not job.measures:
        return []
    scored = score_sets(task, sets, logits, task.labels, own_labels=True)
    if not isinstance(scorer, LikelihoodScorer):
        for one in scored.values():
            one.result.more["no_label"] = float(np.isneginf(one.logits).all(-1).mean())
    return report(job, [Measured(task.named(name), one) for name, one in scored.items()])


def _task(job: EvaluationJob) -> tuple[Task, SetSpec]:
    """The task with the sets to measure only, and its training set."""
    if job.data.task:
        whole = with_eval_files(load_task(job.data.task), job.data)
        sets = wanted_sets(whole, job.sets, job.protocols)
    else:
        whole = own_task(job.data)
        sets = [spec for spec in whole.sets if spec.role != "train"]
    return replace(whole, sets=sets), whole.with_role("train")[0]


def _sets(job: EvaluationJob, task: Task) -> list[LabelledTexts]:
    return load_sets(job, task, task.labels) if job.measures else []


def _spec(texts: LabelledTexts, task: Task) -> SetSpec | None:
    """The description of a set; None for the texts of --test_file."""
    return next((spec for spec in task.sets if spec.name == texts.name), None)


def _request(
    texts: LabelledTexts,
    spec: SetSpec | None,
    task: Task,
    train: LabelledTexts,
    options: FewShotArguments,
) -> Request:
    """The prompts of one set; for a set with fewer labels the examples are given its labels."""
    labels = task.labels
    if spec is not None and spec.labels:
        to = label_map(spec, task, task.labels)
        labels = spec.labels
        train = replace(train, labels=[int(to[label]) for label in train.labels])
    if len(texts.texts) != len(train.texts):
        raise UsageError(
            f"{texts.name} has {len(texts.texts)} text column(s), and the training set "
            f"{len(train.texts)}: name the columns with --text_column_names"
        )
    template = template_of(labels, len(texts.texts))
    rows = demonstrations(train.labels, labels, options.shots, options.seed)
    return Request(texts.name, prompts(template, train, rows, texts), template.answers)


def _scorer(job: EvaluationJob, options: FewShotArguments) -> Scorer:
    if options.fewshot_backend != LOCAL:
        return endpoint_scorer(options)
    return likelihood_scorer(job.model, job.tokenizer_name, job.revision, job.batch_size)
