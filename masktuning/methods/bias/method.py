"""What all methods with a frozen bias-only model have: its options, and its column.

Shapes: B examples, C classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from masktuning.config.errors import UsageError
from masktuning.data.batch import Batch
from masktuning.data.example_ids import column, refuse_stream, with_column
from masktuning.methods.base import Method
from masktuning.methods.bias.kept import kept_table, key_of, plain_rows
from masktuning.methods.bias.models import MODELS, check_model, fitted_bias

_SUM_TOLERANCE = 0.01  # of probabilities that a file gives with few digits
COLUMN = "bias_log_probabilities"
_VERSION = 2  # to be raised when a bias model gives other numbers for the same training set
_FILE = "file"


@dataclass
class BiasOptions:
    """Where the predictions of the bias-only model come from."""

    bias_model: str = field(
        default=_FILE,
        metadata={
            "help": "The biased model. file: its predictions are in --bias_file; overlap: logistic "
            "regression on what two texts have in common; hypothesis: on the words of the second "
            "text; shallow: on the words of the whole text.",
            "choices": [_FILE, *MODELS],
        },
    )
    bias_file: str | None = field(
        default=None,
        metadata={
            "help": "JSON lines with a biased model's predictions on the training set: example_id "
            "(its row, from 0) and probabilities (one per label, in the labels' order)."
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if self.bias_model not in (_FILE, *MODELS):
            known = ", ".join((_FILE, *MODELS))
            raise ValueError(f"bias_model is {self.bias_model!r}: give one of {known}")
        if self.bias_file is not None and self.bias_model != _FILE:
            raise ValueError(
                f"bias_file goes with bias_model {_FILE!r}, not with {self.bias_model!r}"
            )


class BiasMethod(Method):
    """A method whose loss contains the log-probabilities of a frozen bias-only model.

    They are the column `bias_log_probabilities` of the training set, [C] floats per row. Where it
    is missing, `prepare` adds it: from `bias_file`, or by fitting the `bias_model` to the tokenised
    training set. In a batch they are the tensor [B, C] of that name in `batch.columns`.
    """

    Options = BiasOptions
    needs = "a bias model (`--bias_model`)"

    @classmethod
    def check_task(cls, options: Any, pairs: bool, labels: Sequence[str]) -> None:
        """Raises UsageError if the bias model cannot be fitted for the task."""
        if options.bias_model != _FILE:
            check_model(options.bias_model, pairs, labels)
        elif options.bias_file is None:
            raise UsageError(
                "--bias_file is missing: a biased model's predictions on the training set; or give "
                f"--bias_model {', '.join(MODELS[:-1])} or {MODELS[-1]}, which is fitted to it"
            )

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the column of the bias model, unless the training set has it already."""
        refuse_stream(train, "the bias model's predictions are added to every training text")
        if COLUMN in train[0]:
            return train
        options = self.options
        if options.bias_model != _FILE:
            return with_column(train, COLUMN, self._fitted(train, cache))
        if options.bias_file is None:
            raise UsageError(
                "--bias_file is missing: a biased model's predictions are needed, from this file, "
                f"from --bias_model or as the column {COLUMN!r} of the training set"
            )
        found = read_bias(Path(options.bias_file), self.model.config.num_labels)
        ids = column(train, "example_id")
        missing = [i for i in ids if i not in found]
        if missing:
            raise UsageError(
                f"{options.bias_file}: no prediction for example_id {missing[0]}"
                f" (and {len(missing) - 1} more)"
            )
        return with_column(train, COLUMN, [found[i] for i in ids])

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the bias model's log-probabilities [B, C]."""
        batch.columns[COLUMN] = torch.tensor([row[COLUMN] for row in rows], dtype=torch.float32)
        return batch

    def _fitted(self, train: Any, cache: Path) -> list[list[float]]:
        """The log-probabilities of a bias model that is fitted now, or was earlier."""
        name, rows = self.options.bias_model, plain_rows(train)
        labels = label_names(self)
        encoder: Any = self.model.encoder
        embeddings = encoder.get_input_embeddings().weight
        # The other models do not read the embeddings, which differ between checkpoints.
        weights = embeddings if name == "overlap" else None
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        key = key_of(rows, _VERSION, name, labels, vocabulary, weights)
        return kept_table(
            cache,
            f"bias-{name}",
            key,
            lambda: fitted_bias(name, rows, labels, self.tokenizer, embeddings),
        )


def of_label(values: Tensor, labels: Tensor) -> Tensor:
    """[B], the entries of `values` [B, C] at the labels [B]; any entry where the label is -100."""
    return values.gather(-1, labels.clamp(min=0)[:, None])[:, 0]


def label_names(method: Method) -> list[str]:
    """The names of the labels, in the order of their ids."""
    return [str(name) for _, name in sorted(method.config.id2label.items())]


def read_bias(path: Path, classes: int) -> dict[int, list[float]]:
    """Log-probabilities by example_id, from lines {"example_id": i, "probabilities": [...]}.

    Raises:
        UsageError: naming the line, if it is not that, or the probabilities are not `classes`
            numbers above 0.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file; --bias_file holds a biased model's predictions")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8; save the file as UTF-8") from None
    found: dict[int, list[float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            shares = [float(p) for p in row["probabilities"]]
            example_id = int(row["example_id"])
        except (ValueError, TypeError, KeyError):
            shares, example_id = [], -1
        if not shares or not all(0 < p <= 1 for p in shares):  # which NaN is not, either
            raise UsageError(
                f"{path}, line {number}: give an example_id and probabilities above 0"
            ) from None
        if len(shares) != classes:
            raise UsageError(f"{path}, line {number}: {len(shares)} probabilities, not {classes}")
        if abs(sum(shares) - 1) > _SUM_TOLERANCE:
            raise UsageError(f"{path}, line {number}: the probabilities add up to {sum(shares):g}")
        if example_id in found:
            raise UsageError(f"{path}, line {number}: a second line of example_id {example_id}")
        found[example_id] = [math.log(p) for p in shares]
    return found
