"""The scores of a run's sets in its log, from where Trainer's callbacks pass them to trackers."""

from __future__ import annotations

from collections.abc import Iterable

from masktuning.data.tokenize import EncodedSet
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.predict import evaluate_sets
from masktuning.tasks import Task
from masktuning.training.evaluating_trainer import EvaluatingTrainer

_OF_INTERVALS = ("_low", "_high", "_samples")


def scores_to_log(results: Iterable[SetResult]) -> dict[str, float]:
    """The scores as eval_<set>_<score>, without the ends of their intervals."""
    return {
        name: value
        for result in results
        for name, value in result.as_metrics().items()
        if not name.endswith(_OF_INTERVALS)
    }


def measure_in_training(
    trainer: EvaluatingTrainer, sets: list[EncodedSet], task: Task, ood: bool
) -> None:
    """Adds the scores of the task's sets to every evaluation of dev during training.

    Args:
        trainer: whose `eval_dataset` is dev.
        sets: all encoded sets.
        task: what they belong to.
        ood: whether to measure all sets, or dev alone under its own name.
    """
    dev = next(one for one in sets if one.data is trainer.eval_dataset)
    measured = [one for one in sets if one.texts.role != "train"] if ood else [dev]

    def more() -> dict[str, float]:
        logits = trainer.logits_of_step()
        if logits is None and not ood:
            return {}  # dev would have to be measured once more
        known = {} if logits is None else {dev.texts.name: logits}
        scored = evaluate_sets(trainer, measured, task, task.labels, known)
        return scores_to_log(one.result for one in scored.values())

    trainer.more_metrics = more
