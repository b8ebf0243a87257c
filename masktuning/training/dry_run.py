"""What a run would take: a few steps of it in a temporary folder."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

from masktuning.config.errors import UsageError
from masktuning.methods import method_class
from masktuning.training.arguments import method_options
from masktuning.training.build import build_trainer, planned_steps, training_examples
from masktuning.training.job import TrainingJob


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
    trainer, sets = build_trainer(job)
    clock = _StepClock()
    trainer.add_callback(clock)
    trainer.train()
    examples = training_examples(sets)
    # The fastest: a first step warms up, and another program may hold up one.
    step = min(b - a for a, b in pairwise(clock.times))
    args.max_steps = steps_wanted
    steps = planned_steps(args, examples)
    seconds = step * steps
    epochs = args.num_train_epochs if evaluates else 0  # dev is measured after each
    print(f"train: {examples} examples, {steps} steps of {step:.3f} s")
    for texts, data in sets:
        if texts.role == "train":
            continue
        first = data.select(range(min(args.eval_batch_size, len(data))))
        start = time.perf_counter()
        trainer.predict(first)
        share = (time.perf_counter() - start) * len(data) / len(first)
        seconds += share * (1 + epochs if texts.role == "dev" else 1)
        print(f"{texts.name}: {len(data)} examples, {share:.1f} s")
    print(f"estimated total: {seconds / 60:.1f} minutes without checkpoints; nothing was kept")


class _StepClock(TrainerCallback):
    """When each optimiser step began and the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
