"""Training with a method that is measured by something other than the classification of dev."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def measures_itself(trainer: Any) -> bool:
    """Whether the trainer's method is measured by `Method.measure`."""
    return bool(trainer.method.measures)


def evaluate_by_method(trainer: Any) -> dict[str, float]:
    """What Trainer.evaluate does, with what the method measures as the metrics eval_<name>."""
    with trainer.time_log.during("evaluation"):
        metrics = _measured(trainer)
    if not metrics:
        return {}
    trainer.log(metrics)
    args, state, control = trainer.args, trainer.state, trainer.control
    trainer.control = trainer.callback_handler.on_evaluate(args, state, control, metrics)
    return metrics


def final_metrics(trainer: Any) -> dict[str, float]:
    """The metrics of the model that training left, from the log if training measured that model."""
    names = [f"eval_{name}" for name in trainer.method.measures]
    for log in reversed(trainer.state.log_history):
        if log["step"] == trainer.final_step and all(name in log for name in names):
            return {name: log[name] for name in names}
    return evaluate_by_method(trainer)


@torch.no_grad()
def _measured(trainer: Any) -> dict[str, float]:
    found: dict[str, float] = {}

    def measure() -> Iterator[Tensor]:
        found.update(trainer.method.measure(trainer.args.eval_batch_size))
        yield torch.zeros(())

    training = trainer.model.training
    trainer.model.eval()
    with trainer.accelerator.autocast():
        trainer.model(losses=measure())  # FSDP's wrapper has to see a forward pass
    trainer.model.train(training)
    return {f"eval_{name}": value for name, value in found.items()}
