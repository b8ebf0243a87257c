"""Which model of a run is kept, and when a run stops early."""

from __future__ import annotations

import logging
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

from masktuning.config.errors import UsageError
from masktuning.methods import method_class
from masktuning.training.job import TrainingJob
from masktuning.training.run_folder import step_of
from masktuning.training.sets_of_run import SetsOfRun

logger = logging.getLogger(__name__)


def prepare_selection(job: TrainingJob, trainer: Any, sets: SetsOfRun) -> None:
    """Checks the metric by which the best model is found, and stops the run early if asked.

    Raises:
        UsageError: for a metric that training does not measure, or if one is missing.
    """
    args, patience = job.training, job.run.early_stopping_patience
    if job.run.eval_ood == "epoch" and args.eval_strategy == "no":
        raise UsageError("--eval_ood epoch needs --eval_strategy epoch or steps")
    if args.eval_strategy != "no":
        sets.check_metric(args, method_class(args.method).measures)
    if patience is not None:
        if args.metric_for_best_model is None:
            raise UsageError("--early_stopping_patience needs --metric_for_best_model")
        trainer.add_callback(EarlyStoppingCallback(patience))
        trainer.add_callback(_Patience(trainer, patience))
    roles = {f"eval_{one.texts.name}_accuracy": one.texts.role for one in sets.sets}
    metric = f"eval_{str(args.metric_for_best_model).removeprefix('eval_')}"
    if args.load_best_model_at_end and roles.get(metric, "dev") != "dev":
        logger.warning(
            "warning: the model is chosen by %s, so its score on that set is too favourable",
            metric,
        )


class _Patience(TrainerCallback):
    """Gives early stopping this call's patience; on a resume, Trainer restores the earlier one."""

    def __init__(self, trainer: Any, patience: int) -> None:
        self.trainer, self.patience = trainer, patience

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        for one in self.trainer.callback_handler.callbacks:
            if isinstance(one, EarlyStoppingCallback):
                one.early_stopping_patience = self.patience


def say_selection(job: TrainingJob, trainer: Any) -> None:
    """Prints where training stopped early, and which step's model was kept as the best one."""
    args, state = job.training, trainer.state
    if not trainer.is_world_process_zero():
        return
    if job.run.early_stopping_patience is not None and state.global_step < state.max_steps:
        print(f"stopped early, after step {state.global_step} of {state.max_steps}")
    if args.load_best_model_at_end and state.best_model_checkpoint is not None:
        name = str(args.metric_for_best_model).removeprefix("eval_")
        print(
            f"the model of step {step_of(state.best_model_checkpoint)} is kept, with the best "
            f"{name}: {state.best_metric:.4f}"
        )
