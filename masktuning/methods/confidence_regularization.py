"""Confidence regularization (Utama et al. 2020): a teacher whose targets are flatter where a bias
model knows the answer.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.example_ids import with_column
from masktuning.methods.base import Stage
from masktuning.methods.bias.method import COLUMN, BiasMethod, BiasOptions, of_label
from masktuning.methods.bias.teacher import teacher_log_probabilities
from masktuning.methods.step import Step

TEACHER = "teacher"
TEACHER_COLUMN = "teacher_log_probabilities"


@dataclass
class ConfidenceRegularizationOptions(BiasOptions):
    """The options of confidence regularization."""

    _argument_group_name = "confidence_regularization"


class ConfidenceRegularization(BiasMethod):
    """L = -mean_i sum_k S_ik log_softmax(f(x_i))_k, with S_i = T_i^(1 - beta_i), normalized.

    f(x) are the classifier's logits [B, C] and T [B, C] the probabilities of a teacher: the same
    model, fine-tuned on the same training set before (the run's stage `teacher`).
    beta_i = b(x_i)[y_i] is the probability that a frozen bias-only model gives the label. The more
    the bias model knows, the flatter is the target S [B, C]: the student is to be less certain
    there, but is never told that the teacher was wrong. The label itself is only in beta. See
    section 3 of the paper.

    The teacher's predictions are computed once, without dropout, or are the column
    `teacher_log_probabilities` of the training set, [C] floats per row. The bias model is chosen
    with `bias_model`; where `overlap` tells entailment from two other labels, which share its
    probability, beta is at most 1/2 for those. Class weights and label smoothing are used by the
    teacher only.

    Deviations: those of the bias models of `bias_product`. In tasks of two labels without
    entailment, such as QQP, whose bias model the authors did not publish, the features of `overlap`
    are averaged over both orders of the texts.

    Equivalent to::

        beta_B1 = b_BC.gather(1, labels_B[:, None])
        S_BC = ((1 - beta_B1) * log_T_BC).softmax(-1)
        return F.cross_entropy(model(**batch).logits, S_BC)
    """

    Options = ConfidenceRegularizationOptions
    terms = ("distillation",)
    paper = (
        'Utama et al., "Mind the Trade-off: Debiasing NLU Models without Degrading the '
        'In-distribution Performance", arXiv 2005.00315'
    )
    when = (
        "You can name a shortcut in your training set, and must not lose accuracy on texts like "
        "those of the training set."
    )

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """The teacher, by plain fine-tuning with the arguments of the run."""
        return [Stage(TEACHER, "finetuning")]

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the columns of the bias model and of the teacher, unless they are there already."""
        train = super().prepare(train, cache)
        if TEACHER_COLUMN in train[0]:
            return train
        folder = Path(cache)
        found = teacher_log_probabilities(train, folder / TEACHER, self.tokenizer, folder)
        return with_column(train, TEACHER_COLUMN, found)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the log-probabilities of both, [B, C] each."""
        logs_BC = torch.tensor([row[TEACHER_COLUMN] for row in rows], dtype=torch.float32)
        batch.columns[TEACHER_COLUMN] = logs_BC
        return super().collate(batch, rows)

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy with the teacher's scaled predictions."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        labelled_B = batch.labels != -100
        beta_B = of_label(batch.columns[COLUMN], batch.labels).exp()
        scaled_BC = (1 - beta_B)[:, None] * batch.columns[TEACHER_COLUMN]
        losses_B = F.cross_entropy(logits_BC.float(), scaled_BC.softmax(-1), reduction="none")
        step.log(
            loss_cls=step.cross_entropy(logits_BC.detach(), batch.labels),
            bias_confidence=step.mean(beta_B * labelled_B),
        )
        yield step.mean(losses_B * labelled_B)
