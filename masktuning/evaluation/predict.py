"""Runs a classifier over sets, in batches of texts of similar length, and scores it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from masktuning.data.tokenize import EncodedSet
from masktuning.evaluation.scoring import Scored, score_sets
from masktuning.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


class _Predictor(Trainer):
    """Returns the logits only: BART's classifier returns its encoder's states alongside them."""

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[None, Tensor, Tensor]:
        batch = self._prepare_inputs(inputs)
        # The label ids of the set need not be the model's, so the model computes no loss.
        labels = batch.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, model(**batch).logits.detach(), labels


def predictor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch_size: int,
    progress: bool = True,
    use_cpu: bool = False,
) -> Trainer:
    """A Trainer that predicts with any sequence classifier, for `predict` and `evaluate_sets`.

    `progress` says whether it shows a progress bar.
    """
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # Trainer requires a folder; nothing is written to it
        per_device_eval_batch_size=batch_size,
        use_cpu=use_cpu,
        dataloader_pin_memory=torch.cuda.is_available() and not use_cpu,
        report_to="none",
        disable_tqdm=not progress,  # the default would follow the verbosity of transformers' log
    )
    collator = DataCollatorWithPadding(tokenizer)
    return _Predictor(model, args, data_collator=collator, processing_class=tokenizer)


def predict(trainer: Trainer, dataset: Dataset) -> NDArray[Any]:
    """Logits [n, C] of C labels in the order of `dataset`, longest texts computed first."""
    order = longest_first(dataset)
    return undo_order(np.asarray(trainer.predict(dataset.select(order)).predictions), order)


def longest_first(dataset: Any) -> NDArray[np.int64]:
    """The row numbers [n] of tokenised texts, longest first; equally long ones keep their order."""
    return np.argsort([-len(ids) for ids in dataset["input_ids"]], kind="stable")


def undo_order(values: NDArray[Any], order: NDArray[np.int64]) -> NDArray[Any]:
    """Values [n, ...] of the rows `order` [n] of a data set, in the data set's own order."""
    in_order = np.empty_like(values)
    in_order[order] = values
    return in_order


def evaluate_sets(
    trainer: Trainer, sets: list[EncodedSet], task: Task, labels: list[str]
) -> dict[str, Scored]:
    """The scores of each set by its name; `labels` are the model's. See `score_sets`."""
    logits = {one.texts.name: predict(trainer, one.data) for one in sets}
    return score_sets(task, [one.texts for one in sets], logits, labels)
