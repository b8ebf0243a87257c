"""Accuracy with its uncertainty, in numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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

    def as_metrics(self) -> dict[str, float]:
        """Trainer's names: eval_<set>_accuracy, ..."""
        prefix = f"eval_{self.name}"
        return {
            f"{prefix}_accuracy": self.accuracy,
            f"{prefix}_accuracy_low": self.low,
            f"{prefix}_accuracy_high": self.high,
            f"{prefix}_samples": self.n,
        }


def score(name: str, role: str, predictions: np.ndarray, labels: np.ndarray) -> SetResult:
    """Accuracy of predicted label ids [n] against gold ones [n], with its bootstrap interval.

    Resampling n examples with replacement makes the number of right ones binomial, so the
    bootstrap is drawn from that directly; its seed is fixed.
    """
    n = len(labels)
    accuracy = float((predictions == labels).mean())
    draws = np.random.default_rng(0).binomial(n, accuracy, _RESAMPLES) / n
    low, high = np.percentile(draws, [2.5, 97.5])
    return SetResult(name, role, accuracy, float(low), float(high), n)


def accuracy(predictions: Any) -> dict[str, float]:
    """Trainer's compute_metrics: the share of examples whose largest logit is the label's."""
    chosen = np.asarray(predictions.predictions).argmax(-1)
    return {"accuracy": float((chosen == predictions.label_ids).mean())}
