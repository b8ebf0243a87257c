"""Runs a comparison: reads its flags, works through its cells, and gathers what they found."""

from __future__ import annotations

import threading
from collections import Counter

from masktuning.config import files
from masktuning.data.load import LabelledTexts
from masktuning.experiments.board import Board
from masktuning.experiments.choice import choices, search_scores
from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.identity import digest, identity_of
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Cell, Plan
from masktuning.experiments.proposals import with_proposals
from masktuning.experiments.request import ComparisonRequest, check, plan_of, spaces_of
from masktuning.experiments.run_cell import CellRunner
from masktuning.experiments.study import Progress, SharedStudy
from masktuning.experiments.worker import Workers, threads_of_a_job
from masktuning.tasks import SetSpec
from masktuning.training.build import read_texts

_RUNS = "runs"


def compare(request: ComparisonRequest, bar: bool = True) -> Comparison:
    """What all methods found, after running the cells that nobody has run yet.

    Args:
        request: what to compare.
        bar: whether to show a bar of the progress.

    Raises:
        UsageError: for flags, data, models or a storage that cannot be used, and for a study that
            was begun with others.
        KeyboardInterrupt: after the runs were ended; the same call goes on.
    """
    jobs = check(request)
    first = next(iter(jobs.values()))
    plan, spaces = plan_of(request), spaces_of(request)
    texts = read_texts(first)
    identity, constant = identity_of(jobs, texts), accuracy_of_one_label(texts, first.task.sets)
    name = request.study_of(first.task.name)
    folder = request.folder_of(first.task.name)
    files.make(folder)
    url = request.url_of(first.task.name)
    study = SharedStudy(url, name)
    study.identify(identity)
    if not any(one.role == "ood" for one in first.task.sets):
        print("no out-of-distribution set: --eval_files NAME=FILE would have one measured")
    if request.retry_failed:
        study.retry(jobs)
    variants = {variant.name: variant for variant in request.variants}
    runner = CellRunner(
        words=lambda cell: [*request.words(variants[cell.variant], cell.point), *_seed(cell)],
        folder=folder / _RUNS / name,
        identities={variant: digest(identity, variant) for variant in jobs},
        embedded=request.embedded,
        environment={"OMP_NUM_THREADS": threads_of_a_job(request.jobs)},
        stop=threading.Event(),
    )
    board = Board(plan.count(), request.jobs, bar)
    workers = Workers(plan, spaces, (url, name), runner, request.jobs, request.keep, board)
    try:
        workers.run()
    finally:
        board.close()
    baseline = request.baseline or request.variants[0].name
    progress = study.progress()
    plan = with_proposals(plan, spaces, progress.dev(), progress.failures)
    task = first.task.name
    return gathered(plan, progress, task, baseline, identity, constant, request.flags)


def accuracy_of_one_label(texts: list[LabelledTexts], sets: list[SetSpec]) -> dict[str, float]:
    """By the name of each set to measure on, the share of its most frequent label."""
    labels = {one.name: one.labels for one in texts if one.role != "train" and len(one)}
    for spec in sets:
        if spec.union_of and all(name in labels for name in spec.union_of):
            labels[spec.name] = [label for name in spec.union_of for label in labels[name]]
    return {name: max(Counter(those).values()) / len(those) for name, those in labels.items()}


def _seed(cell: Cell) -> list[str]:
    return ["--seed", str(cell.seed)]


def gathered(
    plan: Plan,
    progress: Progress,
    task: str,
    baseline: str,
    identity: dict[str, object],
    constant: dict[str, float],
    flags: list[str],
) -> Comparison:
    """What is known of a plan's cells, in the form that the report takes."""
    dev = progress.dev()
    chosen = choices(plan, dev, set(progress.failures))
    outcomes: dict[str, dict[int, Outcome]] = {variant.name: {} for variant in plan.variants}
    for cell in plan.final_cells(chosen):
        if cell.key in progress.outcomes:
            outcomes[cell.variant][cell.seed] = progress.outcomes[cell.key]
    cells = [*plan.search_cells(), *plan.final_cells(chosen)]
    return Comparison(
        task=task,
        baseline=baseline,
        plan=plan,
        choices=chosen,
        search=search_scores(plan, dev),
        outcomes=outcomes,
        failures={
            cell.key: progress.failures[cell.key] for cell in cells if cell.key in progress.failures
        },
        identity=identity,
        constant=constant,
        flags=flags,
    )
