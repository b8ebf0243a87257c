"""What a run would take: a few steps of it in a temporary folder."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from masktuning.config.errors import UsageError
from masktuning.data.length_sampler import text_lengths
from masktuning.methods import method_class
from masktuning.training.arguments import method_options
from masktuning.training.build import build_trainer, planned_steps, training_examples
from masktuning.training.job import TrainingJob
from masktuning.training.time_log import OF_STEP, TimeLog, time_table
from masktuning.training.trainer import MaskTuningTrainer


def dry_run(job: TrainingJob, folder: str) -> None:
    """Takes four steps and one batch of every set in `folder`, and prints a time estimate.

    Raises:
        UsageError: for a job that cannot be run, or whose method needs earlier trainings.
    """
    args = job.training
    stages = method_class(args.method).stages(method_options(args))
    if stages:
        names = ", ".join(stage.name for stage in stages)
        raise UsageError(
            f"--dry_run cannot estimate {args.method}, which needs earlier trainings first: {names}"
        )
    steps_wanted = args.max_steps
    args.output_dir, args.max_steps = folder, 4
    evaluates = args.eval_strategy == "epoch"
    args.set_save("no")
    args.set_evaluate("no")
    args.logging_strategy = IntervalStrategy.NO  # few steps of a run are logged; they take longer
    trainer, sets = build_trainer(job)
    clock = _StepClock(trainer.time_log)
    trainer.add_callback(clock)
    trainer.train()
    examples = training_examples(trainer)
    args.max_steps = steps_wanted
    steps = planned_steps(args, examples)
    step = _mean_step(trainer, [b - a for a, b in pairwise(clock.times)])
    seconds = _in_parts(step * steps, trainer.time_log.seconds())
    # Dev is measured after each epoch; the last of these measurements is that of the result.
    times = max(1, math.ceil(args.num_train_epochs)) if evaluates else 1
    print(f"train: {examples} examples, {steps} steps of {step:.3f} s")
    for texts, data in sets:
        if texts.role == "train":
            continue
        first = data.select(range(min(args.eval_batch_size, len(data))))
        start = time.perf_counter()
        trainer.predict(first)
        share = (time.perf_counter() - start) * len(data) / len(first)
        seconds["evaluation"] += share * (times if texts.role == "dev" else 1)
        print(f"{texts.name}: {len(data)} examples, {share:.1f} s")
    whole = sum(seconds.values()) / 60
    print(f"estimated total: {whole:.1f} minutes without checkpoints; nothing was kept")
    print(f"\n{time_table({args.method: seconds})}\n")


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
