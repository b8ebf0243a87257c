"""The bias-only models that are fitted on the training set, by the name `--bias_model` takes.

Shapes: N examples, C classes, H width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.methods.bias.logistic import (
    held_out_regression,
    require_sklearn,
    two_class_regression,
)
from masktuning.methods.bias.overlap import Words, overlap_features
from masktuning.methods.bias.segments import Splitter, refuse_single_texts

MODELS = ("overlap", "hypothesis", "shallow")
ENTAILMENT = "entailment"


def check_model(name: str, pairs: bool, labels: Sequence[str]) -> None:
    """Raises UsageError if a bias model cannot be fitted for a task, or not on this machine."""
    asking = f"--bias_model {name}"
    if name != "shallow":
        refuse_single_texts(pairs, f"{asking} (not shallow or file)")
    if name == "overlap":
        _check_labels(labels)
    require_sklearn()


def entailment_of(labels: Sequence[str]) -> int | None:
    """The id of the label that is called entailment, or None."""
    names = [label.lower() for label in labels]
    return names.index(ENTAILMENT) if ENTAILMENT in names else None


def fitted_bias(
    name: str,
    rows: Sequence[Any],
    labels: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    embeddings: Tensor,
) -> np.ndarray:
    """[N, C] float64, the log-probabilities that a bias model has for the training rows.

    Args:
        name: one of `MODELS`.
        rows: N tokenised rows, with `labels` and `example_id`.
        labels: the names of the C labels, in the order of their ids.
        tokenizer: what made the rows.
        embeddings: [V, H], the encoder's input embeddings.

    Raises:
        UsageError: if the model cannot be fitted on these rows.
    """
    require_sklearn()
    splitter = Splitter(tokenizer)
    given = [int(row["labels"]) for row in rows]
    if name == "overlap":
        return _overlap(rows, given, labels, splitter, Words(tokenizer), embeddings)
    if name == "hypothesis":
        texts = [pair.second for pair in splitter.pairs(rows, "--bias_model hypothesis")]
    else:
        texts = [splitter.text(row) for row in rows]
    ids = [int(row["example_id"]) for row in rows]
    return held_out_regression(texts, given, ids, len(labels))


def _overlap(
    rows: Sequence[Any],
    given: list[int],
    labels: Sequence[str],
    splitter: Splitter,
    words: Words,
    embeddings: Tensor,
) -> np.ndarray:
    """Entailment against the other labels, which share what is left equally; or two labels."""
    _check_labels(labels)
    pairs = splitter.pairs(rows, "--bias_model overlap")
    entailment = entailment_of(labels)
    features = overlap_features(pairs, words, embeddings, both_orders=entailment is None)
    positive = 1 if entailment is None else entailment
    labels_N = np.asarray(given)
    positive_N, labelled_N = labels_N == positive, labels_N >= 0
    if len(np.unique(positive_N[labelled_N])) < 2:
        raise UsageError(
            "--bias_model overlap: the training set needs examples with the label "
            f"{labels[positive]!r} and examples without it"
        )
    logs_N2 = two_class_regression(features, positive_N, labelled_N)
    found = np.repeat(logs_N2[:, :1] - math.log(len(labels) - 1), len(labels), 1)
    found[:, positive] = logs_N2[:, 1]
    return found


def _check_labels(labels: Sequence[str]) -> None:
    """Raises UsageError for labels that the overlap of two texts says nothing about."""
    if len(labels) > 2 and entailment_of(labels) is None:
        raise UsageError(
            f"--bias_model overlap: of more than two labels one must be called {ENTAILMENT!r}; "
            f"these are {', '.join(labels)}"
        )
