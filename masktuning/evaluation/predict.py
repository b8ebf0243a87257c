"""Runs a classifier over sets, longest texts together, and scores it."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from masktuning.config.errors import UsageError, one_line
from masktuning.data.tokenize import EncodedSet
from masktuning.evaluation.scoring import Scored, score_sets
from masktuning.modeling.loading import LOADING_ERRORS, check_folder, check_language
from masktuning.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


class _Predictor(Trainer):
    """Takes the logits alone: BART's classifier returns its encoder's states beside them."""

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any
    ) -> tuple[None, Tensor, Tensor]:
        batch = self._prepare_inputs(inputs)
        labels = batch.pop("labels")  # of the set: not always the model's, so no loss is asked for
        with torch.no_grad(), self.compute_loss_context_manager():
            return None, model(**batch).logits.detach(), labels


def load_classifier(
    name: str, batch_size: int
) -> tuple[Trainer, PreTrainedModel, PreTrainedTokenizerBase]:
    """A Trainer that predicts with any sequence classifier, the classifier and its tokenizer.

    Raises:
        UsageError: if they cannot be loaded.
    """
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its loading report is a page; ours is a line
    check_folder(name)
    try:
        check_language(name, AutoConfig.from_pretrained(name))
        tokenizer = AutoTokenizer.from_pretrained(name)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except LOADING_ERRORS as error:
        raise UsageError(f"{name}: cannot be loaded: {one_line(error)}") from None
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"]))
        raise UsageError(f"{name}: has no trained classifier (no {missing}): train one first")
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),  # Trainer wants one; nothing is written
        per_device_eval_batch_size=batch_size,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=False,  # or the verbosity above would take the progress bar along
    )
    collator = DataCollatorWithPadding(tokenizer)
    trainer = _Predictor(model, args, data_collator=collator, processing_class=tokenizer)
    return trainer, model, tokenizer


def predict(trainer: Trainer, dataset: Dataset) -> np.ndarray:
    """Logits [n, C] in the order of `dataset`, computed in batches of similar length."""
    order = np.argsort([-len(ids) for ids in dataset["input_ids"]], kind="stable")
    logits = np.asarray(trainer.predict(dataset.select(order)).predictions)
    in_order = np.empty_like(logits)
    in_order[order] = logits
    return in_order


def evaluate_sets(
    trainer: Trainer, sets: list[EncodedSet], task: Task, labels: list[str]
) -> dict[str, Scored]:
    """The score of each set by name; see `score_sets`."""
    logits = {one.texts.name: predict(trainer, one.data) for one in sets}
    return score_sets(task, [one.texts for one in sets], logits, labels)
