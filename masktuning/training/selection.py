"""Keeping the best model of a run: matching strategies, early stopping, and known metric names."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from masktuning.config.errors import UsageError, check_names
from masktuning.config.options import RunArguments
from masktuning.config.parser import FlagParser
from masktuning.tasks import SetSpec, Task

logger = logging.getLogger(__name__)

_FLAGS = (
    *("load_best_model_at_end", "early_stopping_patience", "eval_strategy", "eval_steps"),
    *("save_strategy", "save_steps"),
)


def selection_defaults(argv: Sequence[str], file: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults with which Trainer can go back to the best model, where a run asks for that.

    Trainer demands that a checkpoint is written whenever dev is measured. Unless the user says how
    often to save, this makes it so; one line tells.

    Args:
        argv: the flags, with underscores.
        file: the options of the YAML file.
    """
    parser = FlagParser()
    for name in _FLAGS:
        parser.add_argument(f"--{name}", nargs="?", const="true")
    flags = vars(parser.parse_known_args(argv)[0])
    given = {**{k: v for k, v in file.items() if v is not None and k in _FLAGS}}
    given |= {k: v for k, v in flags.items() if v is not None}
    best = str(given.get("load_best_model_at_end", "false")).lower() not in ("false", "no", "0")
    if not best and "early_stopping_patience" not in given:
        return {}
    found: dict[str, Any] = {"load_best_model_at_end": True}
    if "save_strategy" not in given and "save_steps" not in given:
        found["save_strategy"] = strategy = given.get("eval_strategy", "epoch")
        if strategy == "steps" and "eval_steps" in given:
            found["save_steps"] = given["eval_steps"]
        logger.warning(
            "note: a checkpoint is written whenever dev is measured (--save_strategy %s), so that "
            "the best one can be loaded at the end",
            strategy,
        )
    return found


def check_metric(training: Any, run: RunArguments, task: Task) -> None:
    """Raises UsageError for a --metric_for_best_model that no evaluation in training gives."""
    wanted = training.metric_for_best_model
    if wanted is None or not training.load_best_model_at_end:
        return
    known = known_metrics(task, in_training=run.eval_ood == "epoch")
    name = wanted.removeprefix("eval_")
    later = known_metrics(task, in_training=True)
    if name in later and name not in known:
        raise UsageError(
            f"--metric_for_best_model {wanted} is measured at the end only: add --eval_ood epoch"
        )
    # Scores by group depend on the data; Trainer tells if there is none of that name.
    sets = [spec.name for spec in _measured(task, in_training=run.eval_ood == "epoch")]
    if not any(name.startswith(f"{one}_") for one in sets):
        check_names([name], known, "metric")


def known_metrics(task: Task, in_training: bool) -> set[str]:
    """The names of the scores that are measured during training, without "eval_"."""
    sets = _measured(task, in_training)
    found = {"loss", "accuracy", *(f"{spec.name}_accuracy" for spec in sets)}
    return found | {f"{spec.name}_f1" for spec in sets if spec.f1}


def _measured(task: Task, in_training: bool) -> list[SetSpec]:
    """The first dev set, and if wanted all others."""
    sets = [*task.with_role("dev"), *task.with_role("ood")]
    return sets if in_training else sets[:1]
