"""Losses of a user's own that Trainer would train with, and MaskTuningTrainer would not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import Trainer

_INSTEAD = "the loss is that of the method; for another one write a method (docs/extending.md)"


def refuse_other_losses(
    trainer: Trainer, base: type[Trainer], arguments: Mapping[str, Any]
) -> None:
    """Raises ValueError for a loss that would be ignored without a word.

    Args:
        trainer: the trainer that is being made; its class may be a user's.
        base: the class whose `compute_loss` it should have.
        arguments: the other keyword arguments of the trainer.
    """
    if arguments.get("compute_loss_func") is not None:
        raise ValueError(f"compute_loss_func would not be used: {_INSTEAD}")
    if type(trainer).compute_loss is not base.compute_loss:
        name = type(trainer).__name__
        raise ValueError(f"{name}.compute_loss would not be used in training: {_INSTEAD}")


def refuse_other_problems(model: Any) -> None:
    """Raises ValueError for a model of regression, or of several labels per text."""
    problem = getattr(getattr(model, "config", None), "problem_type", None)
    if problem not in (None, "single_label_classification"):
        raise ValueError(
            f"the model's problem_type is {problem!r}: only classification with one label per text "
            "is supported"
        )
