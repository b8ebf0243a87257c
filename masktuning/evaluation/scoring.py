"""From the logits of a task's sets to their results: collapsed labels, cells, pairs, unions.

Shapes: n examples, C labels of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masktuning.config.errors import UsageError
from masktuning.data.labels import LabelNames
from masktuning.data.load import LabelledTexts
from masktuning.evaluation.metrics import (
    SetResult,
    all_right,
    collapse_argmax,
    collapse_sum,
    f1,
    share,
)
from masktuning.tasks import SetSpec, Task


@dataclass(frozen=True)
class Scored:
    """A set's result, its predicted label ids [n] and which of them are right [n]."""

    result: SetResult
    chosen: NDArray[np.int64]
    right: NDArray[np.bool_]
    labels: list[str]
    """The names of those ids."""


def score_sets(
    task: Task, sets: list[LabelledTexts], logits: dict[str, NDArray[Any]], labels: list[str]
) -> dict[str, Scored]:
    """Each set's score by name, in the task's order; `labels` are the model's, in its order.

    A set that combines others is scored where all of them are there; so is the consistency of
    edited texts with their originals.

    Raises:
        UsageError: if a set and the one of its originals have not the same number of rows.
    """
    texts = {one.name: one for one in sets}
    found: dict[str, Scored] = {}
    for spec in task.sets:
        if spec.name in texts:
            found[spec.name] = _score(spec, texts[spec.name], logits[spec.name], task, labels)
        elif spec.combines and all(name in texts for name in spec.combines):
            gold = [label for name in spec.combines for label in texts[name].labels]
            union = LabelledTexts(spec.name, spec.role, [], gold)
            rows = np.concatenate([logits[name] for name in spec.combines])
            found[spec.name] = _score(spec, union, rows, task, labels)
    for spec in task.sets:
        if spec.name in found and spec.original in found:
            _add_consistency(found[spec.name], found[spec.original])
    return found


def _score(
    spec: SetSpec, texts: LabelledTexts, logits: NDArray[Any], task: Task, labels: list[str]
) -> Scored:
    gold = np.asarray(texts.labels)
    more: dict[str, float] = {}
    names = spec.labels or labels
    if spec.labels:
        to = _collapsing(spec, task, labels)
        chosen = collapse_argmax(logits, to)
        summed = collapse_sum(logits, to) == gold
        more |= _interval("accuracy_sum", share(summed))
    else:
        chosen = logits.argmax(-1)
    right = chosen == gold
    if spec.f1:
        label = None if spec.f1 == "macro" else LabelNames(names).find(spec.f1)
        more |= _interval("f1", f1(chosen, gold, label))
    groups = np.asarray(texts.groups)
    for group in dict.fromkeys(texts.groups):
        for k, name in enumerate(names):
            cell = (groups == group) & (gold == k)
            if not cell.any():
                continue
            more[f"{group}_{name}_accuracy"] = float(right[cell].mean())
            if spec.labels:
                more[f"{group}_{name}_accuracy_sum"] = float(summed[cell].mean())
    if texts.pairs:
        more |= _interval("consistency", share(all_right(right, texts.pairs)))
    result = SetResult(spec.name, spec.role, *share(right), len(gold), more)
    return Scored(result, chosen, right, list(names))


def _collapsing(spec: SetSpec, task: Task, labels: list[str]) -> NDArray[np.int64]:
    """[C], the set's label id for each of the model's labels."""
    model = LabelNames(labels)
    to = np.zeros(len(labels), np.int64)
    for name in task.labels:
        to[model.find(name)] = spec.labels.index(spec.collapse.get(name, name))
    return to


def _add_consistency(edited: Scored, original: Scored) -> None:
    """Row i of one is an edit of row i of the other: both right, as contrast sets are scored."""
    if len(edited.right) != len(original.right):
        names = f"{edited.result.name} and {original.result.name}"
        raise UsageError(
            f"{names} should go row by row, but have {len(edited.right)} and "
            f"{len(original.right)} rows"
        )
    edited.result.more.update(_interval("consistency", share(edited.right & original.right)))


def _interval(name: str, values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
