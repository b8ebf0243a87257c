"""What a run would take: a few steps of it in a temporary folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from masktuning.data.length_sampler import text_lengths
from masktuning.data.tokenize import EncodedSet
from masktuning.methods import method_class
from masktuning.training.arguments import method_options
from masktuning.training.build import build_trainer, planned_steps, training_examples
from masktuning.training.job import TrainingJob
from masktuning.training.stages import stage_job, started
from masktuning.training.time_log import OF_STEP, TimeLog, time_table
from masktuning.training.trainer import MaskTuningTrainer


@dataclass(frozen=True)
class Estimate:
    """What one training would take."""

    examples: int
    steps: int
    step: float
    """Seconds of an average step."""
    sets: list[tuple[str, int, float]]
    """The name of each measured set, its number of examples and the seconds of measuring it."""
    seconds: dict[str, float]
    """The whole training by its parts, as in the table of a run."""

    @property
    def total(self) -> float:
        """The seconds of the whole training, without checkpoints."""
        return sum(self.seconds.values())


def dry_run(job: TrainingJob, folder: str) -> None:
    """Takes a few steps of a run in `folder`, and prints a time estimate.

    Raises:
        UsageError: for a job that cannot be run.
    """
    found = estimates(job, folder)
    for name, one in found.items():
        if len(found) > 1:
            print(f"{name}:")
        print(f"train: {one.examples} examples, {one.steps} steps of {one.step:.3f} s")
        for texts, count, share in one.sets:
            print(f"{texts}: {count} examples, {share:.1f} s")
    whole = sum(one.total for one in found.values()) / 60
    print(f"estimated total: {whole:.1f} minutes without checkpoints; nothing was kept")
    print(f"\n{time_table({name: one.seconds for name, one in found.items()})}\n")


def estimates(job: TrainingJob, folder: str) -> dict[str, Estimate]:
    """What each stage of a run would take, by its name, and the run itself, by its method.

    Four steps of each are taken in `folder`, and one batch of every set is measured. What a method
    prepares before its training is done completely.

    Raises:
        UsageError: for a job that cannot be run.
    """
    job.training.output_dir = folder
    found = {}
    for stage in method_class(job.training.method).stages(method_options(job.training)):
        one = stage_job(job, stage)
        found[f"stage {stage.name}"] = _estimate(one, keep=True)
    found[job.training.method] = _estimate(started(job), keep=False)
    return found


def _estimate(job: TrainingJob, keep: bool) -> Estimate:
    """What a job would take; with `keep` the model of the four steps is left for later stages."""
    args, began = job.training, time.perf_counter()
    steps_wanted, measures = args.max_steps, args.do_eval
    args.max_steps = 4
    evaluates = args.eval_strategy == "epoch"
    args.set_save("no")
    args.push_to_hub, args.report_to = False, []  # nothing is kept of these steps
    args.set_evaluate("no")
    args.logging_strategy = IntervalStrategy.NO  # few steps of a run are logged; they take longer
    trainer, sets = build_trainer(job)
    prepared = time.perf_counter() - began
    clock = _StepClock(trainer.time_log)
    trainer.add_callback(clock)
    trainer.train()
    if keep:
        trainer.save_model()
    examples = training_examples(trainer)
    args.max_steps = steps_wanted
    steps = planned_steps(args, examples)
    step = _mean_step(trainer, [b - a for a, b in pairwise(clock.times)])
    seconds = _in_parts(step * steps, trainer.time_log.seconds())
    seconds["rest"] += prepared
    # Dev is measured after each epoch; the last of these measurements is that of the result.
    times = max(1, math.ceil(args.num_train_epochs)) if evaluates else 1
    measured = _measured(trainer, sets) if measures and not trainer.method.measures else []
    roles = {one.texts.name: one.texts.role for one in sets}
    seconds["evaluation"] += sum(
        share * (times if roles[name] == "dev" else 1) for name, _, share in measured
    )
    return Estimate(examples, steps, step, measured, seconds)


def _measured(trainer: MaskTuningTrainer, sets: list[EncodedSet]) -> list[tuple[str, int, float]]:
    """The seconds that measuring each set takes, from those of its first batch."""
    found = []
    for texts, data in sets:
        if texts.role == "train":
            continue
        first = data.select(range(min(trainer.args.eval_batch_size, len(data))))
        start = time.perf_counter()
        trainer.predict(first)
        share = (time.perf_counter() - start) * len(data) / len(first)
        found.append((texts.name, len(data), share))
    return found


def _mean_step(trainer: MaskTuningTrainer, seconds: list[float]) -> float:
    """The seconds of an average step of an epoch, from those of the epoch's first steps.

    The steps have texts of different lengths, so the time per padded token is what they tell. The
    first one warms up and is left out.
    """
    lengths = text_lengths(trainer.train_dataset, trainer.args.length_column_name)
    assert lengths is not None  # the rows are tokenised
    batches = [rows for rows in trainer.get_train_dataloader().batch_sampler if rows]
    tokens = [len(rows) * int(lengths[rows].max()) for rows in batches]
    per_step = trainer.args.gradient_accumulation_steps
    steps = [sum(tokens[i : i + per_step]) for i in range(0, len(tokens), per_step)]
    mean = sum(steps) / len(steps)
    measured = [steps[i % len(steps)] for i in range(len(seconds))]
    first = min(1, len(seconds) - 1)
    return mean * sum(seconds[first:]) / sum(measured[first:])


def _in_parts(whole: float, measured: Mapping[str, float]) -> dict[str, float]:
    """The seconds of all steps, divided among their parts as those that were measured."""
    scale = whole / sum(measured[part] for part in OF_STEP)
    return {part: scale * value if part in OF_STEP else 0.0 for part, value in measured.items()}


class _StepClock(TrainerCallback):
    """When each optimiser step began and the last one ended; the log leaves the first one out."""

    def __init__(self, log: TimeLog) -> None:
        self.log = log
        self.times: list[float] = []

    def on_step_begin(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        if args.device.type == "cuda":  # a GPU may still be at the step before
            torch.cuda.synchronize(args.device)
        self.times.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if len(self.times) == 1:
            self.log.restart()

    def on_train_end(self, args: Any, *rest: Any, **kwargs: Any) -> None:
        self.on_step_begin(args)
