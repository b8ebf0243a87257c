"""From the logits of a task's sets to their results: label maps, groups, pairs and unions.

Shapes: n examples, C labels of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from masktuning.config.errors import UsageError
from masktuning.data.labels import LabelNames
from masktuning.data.load import LabelledTexts
from masktuning.evaluation.metrics import (
    SetResult,
    accuracy_with_interval,
    all_correct,
    collapse_argmax,
    collapse_sum,
    f1,
    likeliest,
)
from masktuning.tasks import SetSpec, Task


@dataclass(frozen=True)
class Scored:
    """The result of one set and what it was computed from."""

    result: SetResult
    predictions: NDArray[np.int64]
    """[n] predicted label ids of the set, or `NO_LABEL`."""
    correct: NDArray[np.bool_]
    """[n] whether each prediction is correct."""
    labels: list[str]
    """The label names of those ids."""
    texts: LabelledTexts
    logits: NDArray[Any]
    """[n, C] what the predictions were made from."""
    model_labels: list[str]
    """The C label names of the logits."""


def score_sets(
    task: Task,
    sets: list[LabelledTexts],
    logits: dict[str, NDArray[Any]],
    labels: list[str],
    own_labels: bool = False,
) -> dict[str, Scored]:
    """The scores of each set by its name, in the task's order.

    `logits` holds an array [n, C] for each of `sets`; `labels` are the model's C label names. A
    union of sets is scored if all of its parts are in `sets`. If a set of edited texts and the set
    of their originals are both there, the edited one is given its consistency.

    With `own_labels`, the logits of a set that has labels of its own are over these, as where a
    language model is asked for them, so that no rule to collapse labels is needed.

    Raises:
        UsageError: if these two sets differ in their number of rows.
    """
    texts = {one.name: one for one in sets}
    found: dict[str, Scored] = {}
    for spec in task.sets:
        if spec.name in texts:
            one, rows = texts[spec.name], logits[spec.name]
            found[spec.name] = _score(spec, one, rows, task, labels, own_labels)
        elif spec.union_of and all(name in texts for name in spec.union_of):
            union = _joined(spec, [texts[name] for name in spec.union_of])
            rows = np.concatenate([logits[name] for name in spec.union_of])
            found[spec.name] = _score(spec, union, rows, task, labels, own_labels)
    for spec in task.sets:
        if spec.name in found and spec.original in found:
            _add_consistency(found[spec.name], found[spec.original])
    return found


def only_label(scored: Scored) -> str | None:
    """The label that a classifier gave to every text of a set, if it gave no other.

    None as well where that label is correct for every text.
    """
    found = set(scored.predictions.tolist())
    return scored.labels[found.pop()] if len(found) == 1 and not scored.correct.all() else None


def _score(
    spec: SetSpec,
    texts: LabelledTexts,
    logits: NDArray[Any],
    task: Task,
    labels: list[str],
    own_labels: bool,
) -> Scored:
    """The scores of one set or union from its logits [n, C]."""
    gold = np.asarray(texts.labels)
    names = spec.labels or labels
    more: dict[str, float] = {}
    # `correct` has one entry per rule to collapse labels, by the ending of the accuracies' names.
    if spec.labels and not own_labels:
        to = label_map(spec, task, labels)
        predictions = collapse_argmax(logits, to)
        correct = {"": predictions == gold, "_sum": collapse_sum(logits, to) == gold}
        more |= _with_interval("accuracy_sum", accuracy_with_interval(correct["_sum"]))
    else:
        predictions = likeliest(logits)
        correct = {"": predictions == gold}
    if spec.f1:
        label = None if spec.f1 == "macro" else LabelNames(names).find(spec.f1)
        more |= _with_interval("f1", f1(predictions, gold, label))
    more |= _by_group(texts.groups, gold, names, correct)
    if texts.pairs:
        pairs = all_correct(correct[""], texts.pairs)
        more |= _with_interval("consistency", accuracy_with_interval(pairs))
    accuracy = accuracy_with_interval(correct[""])
    result = SetResult(spec.name, spec.role, *accuracy, len(gold), more)
    columns = [*names] if own_labels else labels
    return Scored(result, predictions, correct[""], list(names), texts, logits, columns)


def _joined(spec: SetSpec, parts: list[LabelledTexts]) -> LabelledTexts:
    """The texts of a union: those of its parts, one after the other."""
    columns = [[*chain.from_iterable(same)] for same in zip(*(p.texts for p in parts), strict=True)]
    gold = [label for part in parts for label in part.labels]
    return LabelledTexts(spec.name, spec.role, columns, gold)


def _by_group(
    groups: list[str],
    gold: NDArray[np.int64],
    names: list[str],
    correct: dict[str, NDArray[np.bool_]],
) -> dict[str, float]:
    """The accuracies within each group and correct label that occur together.

    `correct` holds arrays [n] by the ending that the names of their accuracies have.
    """
    found: dict[str, float] = {}
    group_of_row = np.asarray(groups)
    for group in dict.fromkeys(groups):
        for k, name in enumerate(names):
            rows = (group_of_row == group) & (gold == k)
            if not rows.any():
                continue
            for ending, values in correct.items():
                found[f"{group}_{name}_accuracy{ending}"] = float(values[rows].mean())
    return found


def label_map(spec: SetSpec, task: Task, labels: list[str]) -> NDArray[np.int64]:
    """[C] the label id of a set with fewer labels, such as HANS, for each of the model's labels.

    The set's key `label_map` in the task's YAML file says it by names.
    """
    model = LabelNames(labels)
    to = np.zeros(len(labels), np.int64)
    for name in task.labels:
        to[model.find(name)] = spec.labels.index(spec.label_map.get(name, name))
    return to


def _add_consistency(edited: Scored, original: Scored) -> None:
    """Adds the share of rows whose edited and original text are both classified correctly."""
    if len(edited.correct) != len(original.correct):
        raise UsageError(
            f"row i of {edited.result.name} should be an edited version of row i of "
            f"{original.result.name}, but they have {len(edited.correct)} and "
            f"{len(original.correct)} rows"
        )
    both = accuracy_with_interval(edited.correct & original.correct)
    edited.result.more.update(_with_interval("consistency", both))


def _with_interval(name: str, values: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
