"""A Trainer that evaluates the longest texts first, and need not evaluate its last model again.

Shapes: n examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import EvalLoopOutput, has_length

from masktuning.evaluation.metrics import accuracy
from masktuning.evaluation.predict import longest_first, undo_order
from masktuning.training.own_measures import evaluate_by_method, measures_itself
from masktuning.training.run_folder import step_of
from masktuning.training.sets_of_run import SetsOfRun
from masktuning.training.timed_trainer import TimedTrainer

_DEV = ""  # the name, among kept logits, of those of `eval_dataset`


class EvaluatingTrainer(TimedTrainer):
    """A Trainer that evaluates in order of length where results stay the same; it keeps the logits.

    `predict` and a `compute_metrics` of the user's see the data set's own order, whatever the order
    of training is. The package's own accuracy does not depend on the order, so `evaluate` computes
    it on batches of texts of similar length, which hold less padding.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._order: NDArray[np.int64] | None = None  # of the evaluation that begins
        self._of_dev = False  # whether that is one of `eval_dataset`
        self._others: dict[str, NDArray[Any]] = {}  # logits of the other sets of the run
        self._kept: dict[int, dict[str, NDArray[Any]]] = {}  # by the number of optimiser steps
        self.sets: SetsOfRun | None = None
        """The sets of a run, of which `eval_dataset` is one; they get metrics of their own."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, which keeps the logits of its evaluations."""
        self._kept.clear()
        return super().train(*args, **kwargs)

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Trainer.evaluate, longest texts first if the metrics cannot depend on the order.

        A method that is measured by something of its own is measured by that.
        """
        if eval_dataset is None and measures_itself(self):
            return evaluate_by_method(self)
        own: Any = self.eval_dataset
        dataset = own if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            dataset = own[dataset]
        self._others = {}
        if eval_dataset is None and self.is_in_train and self.sets is not None:
            with self.time_log.during("evaluation"):
                self._others = self.sets.logits_in_training(self)
        self._order = longest_first(dataset) if self._may_reorder(dataset) else None
        self._of_dev = eval_dataset is None
        try:
            return super().evaluate(eval_dataset, *args, **kwargs)
        finally:
            self._order, self._of_dev = None, False

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Trainer's, with all texts: `dataloader_drop_last` is for training."""
        with self._last_batches():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Trainer's, with all texts: `dataloader_drop_last` is for training."""
        with self._last_batches():
            return super().get_test_dataloader(test_dataset)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer.evaluation_loop, after which the logits of `eval_dataset` are kept."""
        order, of_dev = self._order, self._of_dev
        self._order, self._of_dev = None, False  # a callback may call `predict` after this
        output = super().evaluation_loop(*args, **kwargs)
        if self.preprocess_logits_for_metrics is None:  # else the predictions may be anything
            _leave_out_unlabelled(output, f"{kwargs.get('metric_key_prefix', 'eval')}_loss")
        if of_dev and isinstance(output.predictions, np.ndarray):
            logits = output.predictions if order is None else undo_order(output.predictions, order)
            if order is not None:
                self._keep(logits)
            if self.sets is not None and self.is_in_train and output.metrics is not None:
                logits_of_all = {self.sets.dev: logits, **self._others}
                output.metrics.update(self.sets.accuracies(logits_of_all))
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean classification loss on the original texts; used in evaluation only.

        It is the mean over the labels of the batch that are not -100, or 0 if there are none.
        """
        outputs, labels_B = model(**inputs), inputs["labels"]
        total = F.cross_entropy(outputs.logits.float(), labels_B, reduction="sum")
        loss = total / (labels_B != -100).sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def dev_logits(self) -> NDArray[Any] | None:
        """The logits [n, C] of `eval_dataset` by the model that `train` left, if it computed them.

        They are those that `evaluation.predict.predict` would give.
        """
        return self._kept_logits().get(_DEV)

    def other_logits(self) -> dict[str, NDArray[Any]]:
        """The logits of the other sets of the run that training measured, by the sets' names."""
        return {name: logits for name, logits in self._kept_logits().items() if name != _DEV}

    @contextmanager
    def _last_batches(self) -> Iterator[None]:
        """Within it no data loader leaves out a last batch that is not full."""
        wanted = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = wanted

    @property
    def final_step(self) -> int:
        """The number of optimiser steps of the model that `train` left."""
        best = self.state.best_model_checkpoint
        if self.args.load_best_model_at_end and best is not None:
            return step_of(best)
        return self.state.global_step

    def _kept_logits(self) -> dict[str, NDArray[Any]]:
        return self._kept.get(self.final_step, {})

    def _may_reorder(self, dataset: Any) -> bool:
        return (
            self.compute_metrics is accuracy
            and self.preprocess_logits_for_metrics is None
            and not self.args.dataloader_persistent_workers  # Trainer then keeps the first loader
            and has_length(dataset)
            and "input_ids" in (getattr(dataset, "column_names", None) or ())
        )

    def _keep(self, logits: NDArray[Any]) -> None:
        """Keeps the logits of this evaluation, and those of the best model so far.

        Not with --bf16_full_eval or --fp16_full_eval: after training these cast the model before
        they evaluate it, which gives other logits.
        """
        cast = self.args.bf16_full_eval or self.args.fp16_full_eval
        if self.is_in_train and not cast:
            best = self.state.best_global_step
            self._kept = {k: v for k, v in self._kept.items() if k == best}
            self._kept[self.state.global_step] = {_DEV: logits, **self._others}

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        # Trainer's own would follow the order of training, and predict would return that.
        if eval_dataset is None or not has_length(eval_dataset):
            return None
        return SequentialSampler(eval_dataset) if self._order is None else self._order.tolist()


def _leave_out_unlabelled(output: EvalLoopOutput, name: str) -> None:
    """Makes the metric `name` the mean loss over the examples whose label is not -100.

    Trainer takes the mean over batches, in which an example without a label would count. Where no
    label is -100, or no logits were kept, the metric stays as it is.
    """
    logits, labels = output.predictions, output.label_ids
    if not (isinstance(logits, np.ndarray) and isinstance(labels, np.ndarray) and output.metrics):
        return
    labelled = labels != -100
    if name in output.metrics and labelled.any() and not labelled.all():
        logits_nC, labels_n = (torch.from_numpy(one[labelled]) for one in (logits, labels))
        output.metrics[name] = float(F.cross_entropy(logits_nC.float(), labels_n))
