"""Product of experts: the model learns what a frozen, biased model has not explained yet.

Clark et al. 2019 (arXiv 1909.03683, "bias product") and Karimi Mahabadi et al. 2020 (arXiv
1909.06321), with the biased model's predictions given as a column of the training set.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.example_ids import column, with_column
from masktuning.methods.base import Method
from masktuning.methods.step import Step

COLUMN = "bias_log_probabilities"


@dataclass
class ProductOfExpertsOptions:
    """The options of the product of experts."""

    _argument_group_name = "product_of_experts"

    bias_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines with a biased model's predictions on the training set: example_id "
            "(its row, from 0) and probabilities (one per label, in the labels' order)."
        },
    )


class ProductOfExperts(Method):
    """L = CE(log_softmax(f(x)) + log b(x), y), with b(x) the frozen bias model's probabilities.

    Only f is evaluated. The bias model's log-probabilities are the column
    `bias_log_probabilities` of the training set, or are read from `bias_file`.

    Equivalent to::

        log_f = F.log_softmax(model(**batch).logits, -1)
        return F.cross_entropy(log_f + log_b, batch.labels)
    """

    Options = ProductOfExpertsOptions
    terms = ("poe",)
    paper = (
        "Clark et al., \"Don't Take the Easy Way Out: Ensemble Based Methods for Avoiding Known "
        'Dataset Biases", arXiv 1909.03683'
    )

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the column of the bias model, unless the training set has it already."""
        if COLUMN in train[0]:
            return train
        if self.options.bias_file is None:
            raise UsageError(
                f"--bias_file is missing: product_of_experts needs a biased model's predictions, "
                f"from this file or as the column {COLUMN!r} of the training set"
            )
        found = read_bias(Path(self.options.bias_file), self.model.config.num_labels)
        ids = column(train, "example_id")
        missing = [i for i in ids if i not in found]
        if missing:
            raise UsageError(
                f"{self.options.bias_file}: no prediction for example_id {missing[0]}"
                f" (and {len(missing) - 1} more)"
            )
        return with_column(train, COLUMN, [found[i] for i in ids])

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the bias model's log-probabilities [B, C]."""
        batch.columns[COLUMN] = torch.tensor([row[COLUMN] for row in rows], dtype=torch.float32)
        return batch

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy of the product."""
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        step.log(loss_cls=step.cross_entropy(logits_BC.detach(), batch.labels))
        log_f_BC = F.log_softmax(logits_BC.float(), -1)
        yield step.cross_entropy(log_f_BC + batch.columns[COLUMN], batch.labels)


def read_bias(path: Path, classes: int) -> dict[int, list[float]]:
    """Log-probabilities by example_id, from lines {"example_id": i, "probabilities": [...]}.

    Raises:
        UsageError: naming the line, if it is not that, or the probabilities are not `classes`
            numbers above 0.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --bias_file holds a biased model's predictions")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            logs = [math.log(p) for p in row["probabilities"]]
            found[int(row["example_id"])] = logs
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{path}, line {number}: give an example_id and probabilities above 0"
            ) from None
        if len(logs) != classes:
            raise UsageError(f"{path}, line {number}: {len(logs)} probabilities, not {classes}")
    return found
