"""Matching of label names: exactly, or ignoring case and punctuation where that is unambiguous."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from masktuning.config.errors import UsageError

NO_REGRESSION = (
    "scores, as in regression (STS-B), are not supported, only classes; give a column of class "
    "names, or turn the scores into classes"
)

_NUMBER = re.compile(r"\s*[-+\u2212]?\s*\d+(\.\d+)?\s*")


class LabelNames:
    """The ids of label names; id i is the i-th of `names`.

    "Not-Good" matches "not good". If two of the names differ only in case and punctuation, such
    as "C" and "C++", names match exactly or not at all, and so do numbers: "-1" is not "1".

    Raises:
        UsageError: if a name is given twice.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._exact = {name: i for i, name in enumerate(names)}
        folded = {_fold(name): i for i, name in enumerate(names)}
        self._folded = folded if len(folded) == len(self.names) else {}
        if len(self._exact) < len(self.names):
            raise UsageError(f"a label name is given twice: {', '.join(self.names)}")

    def find(self, name: str) -> int | None:
        """The id of a name, or None if there is none.

        A number also matches the name LABEL_<number>, which transformers gives to unnamed labels.
        """
        if name in self._exact:
            return self._exact[name]
        if _NUMBER.fullmatch(name):
            number = name.strip()
            return self._exact.get(number, self._exact.get(f"LABEL_{number}"))
        folded = _fold(name)
        return self._folded.get(folded) if folded else None


def model_labels(config_names: Sequence[str], task_names: Sequence[str]) -> list[str]:
    """A classifier's label names in the order of its ids, if they are the labels of a task.

    Raises:
        UsageError: if they are not, showing both lists.
    """
    task = LabelNames(task_names)
    found = [task.find(name) for name in config_names]
    if None in found or len(set(found)) != len(task_names):
        raise UsageError(
            f"the model's labels are {', '.join(config_names)}, the task's "
            f"{', '.join(task_names)}: give a model of this task, or name the model's labels in "
            "the order of its ids with --label_names (or as id2label in its config.json)"
        )
    return list(config_names)


def reason_unknown(label: str, names: Sequence[str]) -> str:
    """Why a label of a file is none of the label names, and what to do about it."""
    listed = ", ".join(names)
    if is_fraction(label):
        return f"label {label!r} is none of {listed}: {NO_REGRESSION}"
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        return (
            f"label {label!r} is none of {listed}, since the model's labels have no names: give "
            "them in the order of its ids with --label_names"
        )
    return f"label {label!r} is none of {listed}"


def is_fraction(label: str) -> bool:
    """Whether a label is a number that is not whole, so a score rather than the name of a class."""
    try:
        value = float(label)
    except ValueError:
        return False
    return math.isfinite(value) and not value.is_integer()


def _fold(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
