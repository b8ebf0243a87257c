"""Accuracy and F1 with bootstrap intervals, and two rules to collapse labels; in numpy.

Shapes: n examples, C labels of the model, K labels of the set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000
_PERCENTILES = (2.5, 97.5)
NO_LABEL = -1
"""In place of a predicted label id: the answer of a language model that names no label."""


@dataclass(frozen=True)
class SetResult:
    """The scores of a classifier on one set; all scores are shares from 0 to 1."""

    name: str
    role: str
    accuracy: float
    low: float
    """Lower end of the 95 % bootstrap interval of the accuracy."""
    high: float
    """Upper end of that interval."""
    n: int
    """Number of examples."""
    more: dict[str, float] = field(default_factory=dict)
    """Further scores by name: F1, consistency, accuracy per group, ..."""

    def as_metrics(self) -> dict[str, float]:
        """All scores under the names that Trainer gives them: eval_<set>_accuracy, ..."""
        prefix = f"eval_{self.name}"
        return {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_accuracy_low": self.low,
            f"{prefix}_accuracy_high": self.high,
            f"{prefix}_samples": self.n,
            **{f"{prefix}_{name}": value for name, value in self.more.items()},
        }


def accuracy_with_interval(correct: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The mean of `correct` [n] and both ends of its 95 % bootstrap interval.

    When n examples are resampled with replacement, the number of correct ones is binomial, so the
    bootstrap samples are drawn from that distribution. The seed is fixed.
    """
    n = len(correct)
    mean = float(correct.mean())
    draws = np.random.default_rng(0).binomial(n, mean, _RESAMPLES) / n
    low, high = np.percentile(draws, _PERCENTILES)
    return mean, float(low), float(high)


def f1(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], label: int | None
) -> tuple[float, float, float]:
    """F1 of one label id, or for None the mean over all labels, and its 95 % bootstrap interval.

    `predictions` and `labels` are label ids [n]; a prediction may also be `NO_LABEL`. A label that
    neither occurs nor is predicted is not part of the mean; the F1 of such a label alone is 0. When
    examples are resampled, the cells of the confusion matrix are multinomial; the seed is fixed.
    """
    K = int(max(predictions.max(), labels.max())) + 1
    if label is not None:
        predictions, labels, K = predictions == label, labels == label, 2
    size = K
    if predictions.min() < 0:
        size = K + 1  # the last row and column are those of NO_LABEL
        predictions = np.where(predictions < 0, K, predictions)
    counts_KK = np.zeros((size, size), np.int64)
    np.add.at(counts_KK, (labels.astype(np.int64), predictions.astype(np.int64)), 1)
    n = len(labels)
    draws = np.random.default_rng(0).multinomial(n, counts_KK.ravel() / n, _RESAMPLES)
    both = np.concatenate([counts_KK.reshape(1, size, size), draws.reshape(-1, size, size)])
    correct = np.diagonal(both, axis1=1, axis2=2)
    occurring = both.sum(1) + both.sum(
        2
    )  # how often a label is predicted, plus how often it occurs
    scores = np.where(occurring > 0, 2 * correct / np.maximum(occurring, 1), np.nan)
    scores = scores[:, :K]
    means = np.nanmean(scores, axis=1) if label is None else np.nan_to_num(scores[:, 1])
    low, high = np.percentile(means[1:], _PERCENTILES)
    return float(means[0]), float(low), float(high)


def probabilities(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The softmax [n, C] of logits [n, C] over the labels; 0 where all of a row's are -inf."""
    x = logits.astype(np.float64)
    named_n1 = (likeliest(x) != NO_LABEL)[:, None]
    p = np.exp(x - np.where(named_n1, x.max(-1, keepdims=True), 0.0))
    return p / np.where(named_n1, p.sum(-1, keepdims=True), 1.0)


def likeliest(logits: NDArray[Any]) -> NDArray[np.int64]:
    """[n] the id of the largest logit [n, C], or `NO_LABEL` where all of a row's are -inf."""
    return np.where(np.isneginf(logits).all(-1), NO_LABEL, logits.argmax(-1))


def collapse_argmax(logits: NDArray[Any], to: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] label ids of the set: each example's likeliest model label, mapped by `to` [C].

    `logits` is [n, C]; `to` holds the set's label id for each of the model's labels.
    """
    return to[logits.argmax(-1)]


def collapse_sum(logits: NDArray[Any], to: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] label ids of the set: the likeliest label once probabilities are added up.

    Probabilities of model labels that `to` [C] maps to the same label of the set are added.
    """
    p = probabilities(logits)
    summed = np.zeros((len(p), int(to.max()) + 1))
    for c, k in enumerate(to):
        summed[:, k] += p[:, c]
    return summed.argmax(-1)


def all_correct(correct: NDArray[np.bool_], keys: list[str]) -> NDArray[np.bool_]:
    """One value per different key: whether all examples with that key are correct.

    `correct` and `keys` have one entry per example [n].
    """
    found: dict[str, bool] = {}
    for key, one in zip(keys, correct, strict=True):
        found[key] = found.get(key, True) and bool(one)
    return np.array(list(found.values()))


def accuracy(predictions: Any) -> dict[str, float]:
    """For Trainer's compute_metrics: the share of examples whose largest logit is the label's.

    Examples with the label -100 do not count, as in training; there is no accuracy without others.
    """
    labelled = np.asarray(predictions.label_ids) != -100
    correct = np.asarray(predictions.predictions).argmax(-1) == predictions.label_ids
    return {"accuracy": float(correct[labelled].mean())} if labelled.any() else {}
