"""The sets that a run is measured on: at its end and, if asked, whenever training measures dev.

Shapes: n examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from masktuning.config.errors import UsageError
from masktuning.data.tokenize import EncodedSet
from masktuning.data.unlabelled import TEST_FILE
from masktuning.evaluation.predict import predict
from masktuning.evaluation.scoring import Scored, score_sets
from masktuning.tasks import Task


class SetsOfRun:
    """The sets of a run but the training set; the first dev set is the trainer's `eval_dataset`.

    Args:
        sets: all sets of the run.
        task: the run's task, whose labels are the model's.
        by_epoch: whether the others are measured whenever training measures dev.
    """

    def __init__(self, sets: list[EncodedSet], task: Task, by_epoch: bool) -> None:
        self.sets = [one for one in sets if one.texts.role not in ("train", TEST_FILE)]
        self.task = task
        self.by_epoch = by_epoch
        self.dev = next(one.texts.name for one in self.sets if one.texts.role == "dev")

    def logits_in_training(self, trainer: Any) -> dict[str, NDArray[Any]]:
        """The logits [n, C] of the other sets, if they are wanted; training goes on unchanged."""
        if not self.by_epoch:
            return {}
        # A data loader takes a seed from PyTorch's generator, which draws the dropout masks too.
        with torch.random.fork_rng(devices=[]):
            return self.logits(trainer, except_for={self.dev})

    def logits(self, trainer: Any, except_for: Any = ()) -> dict[str, NDArray[Any]]:
        """The logits [n, C] of the sets by name, without those named in `except_for`."""
        wanted = [one for one in self.sets if one.texts.name not in except_for]
        return {one.texts.name: predict(trainer, one.data) for one in wanted}

    def scores(self, logits: Mapping[str, NDArray[Any]]) -> dict[str, Scored]:
        """The scores of the sets whose logits are given, and of their unions."""
        texts = [one.texts for one in self.sets if one.texts.name in logits]
        return score_sets(self.task, texts, dict(logits), self.task.labels)

    def accuracies(self, logits: Mapping[str, NDArray[Any]]) -> dict[str, float]:
        """eval_<set>_accuracy of those sets."""
        return accuracies(self.scores(logits))

    def check_metric(self, args: Any, measures: Sequence[str] = ()) -> None:
        """Checks metric_for_best_model before training, which would look it up after an epoch.

        `measures` are the names of what the method measures in place of the sets, if it does.

        Raises:
            UsageError: for a metric that training does not measure, naming those that it does.
        """
        if args.metric_for_best_model is None:
            return
        name = args.metric_for_best_model.removeprefix("eval_")
        others = {f"{one}_accuracy" for one in self._names() if one != self.dev}
        known = {"loss", "accuracy", f"{self.dev}_accuracy"}
        if name in others and not self.by_epoch and not measures:
            raise UsageError(
                f"--metric_for_best_model {args.metric_for_best_model} is measured at the end of "
                "the run only: give --eval_ood epoch to measure it during training"
            )
        if self.by_epoch:
            known |= others
        if measures:
            known = {*measures}
        if name not in known:
            raise UsageError(
                f"unknown --metric_for_best_model {args.metric_for_best_model}: training measures "
                f"{', '.join(f'eval_{one}' for one in sorted(known))}"
            )

    def _names(self) -> list[str]:
        names = {one.texts.name for one in self.sets}
        unions = [spec for spec in self.task.sets if spec.union_of]
        return [*names, *(one.name for one in unions if names.issuperset(one.union_of))]


def accuracies(scores: Mapping[str, Scored]) -> dict[str, float]:
    """eval_<set>_accuracy of each set, as Trainer names metrics."""
    return {f"eval_{name}_accuracy": one.result.accuracy for name, one in scores.items()}
