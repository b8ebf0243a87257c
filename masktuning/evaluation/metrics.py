"""Accuracy and F1 with their uncertainty, and the rules that collapse labels, in numpy.

Shapes: n examples, C labels of the model, K labels of the set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 10_000


@dataclass(frozen=True)
class SetResult:
    """How a classifier did on one set."""

    name: str
    role: str
    accuracy: float
    low: float
    high: float
    """95 % bootstrap interval of the accuracy."""
    n: int
    more: dict[str, float] = field(default_factory=dict)
    """F1, cells, consistency, ..., by name."""

    def as_metrics(self) -> dict[str, float]:
        """Trainer's names: eval_<set>_accuracy, ..."""
        prefix = f"eval_{self.name}"
        return {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_accuracy_low": self.low,
            f"{prefix}_accuracy_high": self.high,
            f"{prefix}_samples": self.n,
            **{f"{prefix}_{name}": value for name, value in self.more.items()},
        }


def share(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The share that is right [n], and its 95 % bootstrap interval.

    Resampling n examples with replacement makes the number of right ones binomial, so the
    bootstrap is drawn from that directly; its seed is fixed.
    """
    n = len(right)
    mean = float(right.mean())
    draws = np.random.default_rng(0).binomial(n, mean, _RESAMPLES) / n
    low, high = np.percentile(draws, [2.5, 97.5])
    return mean, float(low), float(high)


def f1(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], label: int | None
) -> tuple[float, float, float]:
    """F1 of one label id, or the mean over all (macro) for None; with its bootstrap interval.

    Resampled examples give a multinomial count in each cell of the confusion matrix. A label that
    neither occurs nor is predicted is left out of the mean; alone, its F1 is 0.
    """
    K = int(max(predictions.max(), labels.max())) + 1
    if label is not None:
        predictions, labels, K = predictions == label, labels == label, 2
    counts_KK = np.zeros((K, K), np.int64)
    np.add.at(counts_KK, (labels.astype(np.int64), predictions.astype(np.int64)), 1)
    n = len(labels)
    draws = np.random.default_rng(0).multinomial(n, counts_KK.ravel() / n, _RESAMPLES)
    both = np.concatenate([counts_KK.reshape(1, K, K), draws.reshape(-1, K, K)])
    hits = np.diagonal(both, axis1=1, axis2=2)
    occurring = both.sum(1) + both.sum(2)  # predicted plus gold
    scores = np.where(occurring > 0, 2 * hits / np.maximum(occurring, 1), np.nan)
    means = np.nanmean(scores, axis=1) if label is None else np.nan_to_num(scores[:, 1])
    low, high = np.percentile(means[1:], [2.5, 97.5])
    return float(means[0]), float(low), float(high)


def collapse_argmax(logits: NDArray[Any], to: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] set labels: the model's likeliest label, then what that is in the set (`to` [C])."""
    return to[logits.argmax(-1)]


def collapse_sum(logits: NDArray[Any], to: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n] set labels: the likeliest after the probabilities of labels that are one are added."""
    x = logits.astype(np.float64)
    p = np.exp(x - x.max(-1, keepdims=True))
    summed = np.zeros((len(p), int(to.max()) + 1))
    for c, k in enumerate(to):
        summed[:, k] += p[:, c]
    return summed.argmax(-1)


def all_right(right: NDArray[np.bool_], keys: list[str]) -> NDArray[np.bool_]:
    """One value for each key: whether every row of it is right."""
    seen: dict[str, bool] = {}
    for key, one in zip(keys, right, strict=True):
        seen[key] = seen.get(key, True) and bool(one)
    return np.array(list(seen.values()))


def accuracy(predictions: Any) -> dict[str, float]:
    """Trainer's compute_metrics: the share of examples whose largest logit is the label's."""
    chosen = np.asarray(predictions.predictions).argmax(-1)
    return {"accuracy": float((chosen == predictions.label_ids).mean())}
