"""What rebuilding a table would take: its runs, their steps and their time on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

from masktuning.data.load import load_set
from masktuning.evaluation.tables import aligned
from masktuning.experiments.papers import requests, steps
from masktuning.experiments.papers.requests import SEARCH_SEEDS, Wanted, flags_of, words_of
from masktuning.experiments.papers.spec import Model, PaperTable, TableMethod
from masktuning.experiments.plan import Variant, grid_points
from masktuning.methods import method_class
from masktuning.training.arguments import method_options
from masktuning.training.build import planned_steps
from masktuning.training.job import TrainingJob, read_job
from masktuning.training.stages import stage_job

_PARSING = ("dependency_parsing", "intermediate_parsing")
_FEW = "--max_train_samples 256 --max_eval_samples 8".split()
_ON_PAIRS = "--task demo-pairs --per_device_train_batch_size 16 --max_train_samples 64".split()
_HOW = (
    "The time is that of the training steps alone, one run after the other: one timed step of a "
    "model of the same shape with random weights, with the batch and the mean text length of each "
    "task, times what a step of the method takes with the demo's model relative to fine-tuning. "
    "Evaluation, what methods prepare before training (perturbed copies, scores of tokens) and "
    "the training of the parser are not in it. Whatever else this machine does now makes it longer."
)
_HOW_SMALL = (
    "The time is that of the training steps alone, one run after the other, from a few steps of "
    "each method; evaluation and what methods prepare before training are not in it. Whatever else "
    "this machine does now makes it longer."
)


@dataclass(frozen=True)
class Cost:
    """What a row of a table takes."""

    search: int
    """Runs that choose a grid point."""
    final: int
    """Runs whose figures are shown."""
    steps: int
    """Optimizer steps of all runs, with the earlier trainings of the method."""
    seconds: float

    def __add__(self, other: Cost) -> Cost:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Cost(*(a + b for a, b in pairs))


class Estimate:
    """The costs of the rows of a table on this machine."""

    def __init__(self, table: PaperTable, wanted: Wanted) -> None:
        self.table = table
        self.wanted = wanted
        self._timed = cache(self._time_method)
        self._timer: steps.ShapeTimer | None = None
        """That of the model whose rows are estimated; one model is in memory at a time."""

    def rows(self) -> Iterator[tuple[Model, TableMethod, list[str], Cost]]:
        """Each row with the tasks that it is trained on."""
        for model in self.table.models:
            self._timer = None
            self._timer = steps.ShapeTimer(model.shape) if model.shape else None
            for method in self.table.methods:
                tasks = self.table.tasks(model, method)
                if requests.lacking(method, self.wanted):
                    tasks = []
                costs = (self._cost(model, method, task) for task in tasks)
                yield model, method, tasks, sum(costs, Cost(0, 0, 0, 0.0))

    def _cost(self, model: Model, method: TableMethod, task: str) -> Cost:
        """What all runs of a row on one task take."""
        variant = method.variant
        words = [*flags_of(model, task, self.wanted), *words_of(variant)]
        job = read_job([*words, "--output_dir", "estimated"], self.wanted.embedded, warn=False)
        grid = {k: v for k, v in self.table.grid.items() if k not in self.wanted.given}
        points = grid_points(grid, variant, {f.name for f in fields(type(job.training))})
        search = SEARCH_SEEDS * len(points) if len(points) > 1 else 0
        runs = search + self.wanted.seeds
        cost = self._run(job, variant, task)
        return Cost(search, self.wanted.seeds, runs * cost.steps, runs * cost.seconds)

    def _run(self, job: TrainingJob, variant: Variant, task: str) -> Cost:
        """Steps and seconds of one run, with those of its earlier trainings."""
        args, small = job.training, "" if self._timer else task
        timed, plain = self._timed(variant, small), self._timed(Variant(requests.PLAIN), small)
        seconds = plain.seconds
        if self._timer:
            batch = args.per_device_train_batch_size * args.gradient_accumulation_steps
            length = steps.TOKENS.get(task, job.model.max_seq_length)
            seconds = self._timer.seconds(batch, length)
        rows = _examples(job)
        count = planned_steps(args, round(rows * timed.copies))
        found = Cost(0, 0, count, count * seconds * timed.seconds / plain.seconds)
        for stage in method_class(variant.method).stages(method_options(args)):
            if stage.method not in _PARSING:  # nobody knows beforehand when parsing ends
                other = planned_steps(stage_job(job, stage).training, rows)
                ratio = self._timed(Variant(stage.method), small).seconds / plain.seconds
                found += Cost(0, 0, other, other * seconds * ratio)
        return found

    def _time_method(self, variant: Variant, task: str) -> steps.Timed:
        """Steps of a method with the demo's model, on a generated task of pairs if `task` is ""."""
        if variant.method in _PARSING:  # apart from the parser it is plain fine-tuning
            variant = Variant(requests.PLAIN)
        words = [*_FEW, "--task", task, *self.wanted.flags] if task else [*_FEW, *_ON_PAIRS]
        return steps.method_step([*words, *words_of(variant)], self.wanted.embedded)


def dry_run(table: PaperTable, wanted: Wanted) -> str:
    """The rows of the table with the runs, steps and hours of each, and how that was estimated."""
    lines: list[tuple[str, ...]] = [
        ("model", "method", "tasks", "search runs", "final runs", "steps", "hours")
    ]
    total = Cost(0, 0, 0, 0.0)
    for model, method, tasks, cost in Estimate(table, wanted).rows():
        named = ", ".join(tasks) or "-"
        lines.append((model.label, method.label, named, *_numbers(cost)))
        total += cost
    rows = len(lines) - 1
    lines.append(("total", f"{rows} rows", "", *_numbers(total)))
    small = not any(model.shape for model in table.models)
    how = f"Measured on {steps.device_name()}. {_HOW_SMALL if small else _HOW}"
    return "\n\n".join(
        (table.title, aligned(lines), "\n".join([how, *requests.notes(table, wanted)]))
    )


def _examples(job: TrainingJob) -> int:
    """The number of training examples: what the task's file says, or a generated set holds."""
    spec = job.task.with_role("train")[0]
    rows = spec.expected_counts.get("rows")
    if rows is None:
        rows = len(load_set(spec, job.task.labels, None, ask_hub=False).labels)
    return min(rows, job.data.max_train_samples or rows)


def _numbers(cost: Cost) -> tuple[str, ...]:
    hours = cost.seconds / 3600
    shown = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2f}"
    return (str(cost.search), str(cost.final), f"{cost.steps:,}", shown)
