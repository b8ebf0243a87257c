"""The weights of the classes in the cross-entropy: how they are given, and "balanced".

Shapes: C classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from masktuning.data.example_ids import column

BALANCED = "balanced"


def read_class_weights(given: Any) -> str | list[float] | None:
    """`given` as "balanced" or a list of numbers; a flag gives "balanced", "1,2.5" or words.

    Raises:
        ValueError: if it is neither, or a number is negative or not finite, or all are 0.
    """
    if given is None:
        return None
    items = [given] if isinstance(given, str) else [*given]
    words = [word for item in items for word in str(item).split(",")]
    if words == [BALANCED]:
        return BALANCED
    try:
        weights = [float(word) for word in words]
    except ValueError:
        weights = []
    if not weights or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
        shown = ",".join(words)
        raise ValueError(
            f"class_weights is {shown!r}: give balanced, or for each label a number that is 0 or "
            "more, such as 1.0,2.5 (and not 0 for all of them)"
        )
    return weights


def class_weights(
    given: str | Sequence[float] | None, labels: Sequence[str], dataset: Any
) -> Tensor | None:
    """[C] float64, or None if none are given.

    "balanced" is n / (C * n_c) for a class with n_c of the n examples of the training set, as in
    scikit-learn: each class then has the same sum of weights.

    Args:
        given: what `read_class_weights` returned.
        labels: the names of the C classes in the order of their ids, for messages.
        dataset: the training set; examples with label -100 do not count.

    Raises:
        ValueError: for another number of weights than classes; where "balanced" finds no example of
            a class, or a training set that cannot be counted before training.
    """
    if given is None:
        return None
    if given != BALANCED:
        if len(given) != len(labels):
            raise ValueError(
                f"class_weights has {len(given)} numbers, but there are {len(labels)} labels: "
                f"give one for each of {', '.join(labels)}, in this order"
            )
        return torch.tensor([float(weight) for weight in given], dtype=torch.float64)
    if not hasattr(dataset, "__len__"):
        raise ValueError(
            "class_weights balanced needs a training set whose labels can be counted before "
            "training, which a stream's cannot: give a number for each label"
        )
    counted = [int(label) for label in column(dataset, _label_column(dataset)) if label != -100]
    counts = [counted.count(i) for i in range(len(labels))]
    if missing := [name for name, count in zip(labels, counts, strict=True) if not count]:
        raise ValueError(
            f"class_weights balanced: the training set has no example of {', '.join(missing)}; "
            "give a number for each label"
        )
    weights = [len(counted) / (len(labels) * count) for count in counts]
    return torch.tensor(weights, dtype=torch.float64)


def _label_column(dataset: Any) -> str:
    names = getattr(dataset, "column_names", None) or dataset[0]
    return "labels" if "labels" in names else "label"
