"""Label names: matched exactly, or under case and punctuation where that is unambiguous."""

from __future__ import annotations

import re
from collections.abc import Sequence

from masktuning.config.errors import UsageError


class LabelNames:
    """The ids of label names. "Not-Good" is "not good", but "1" is never "-1" if both are names."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._exact = {name: i for i, name in enumerate(names)}
        folded = {_fold(name): i for i, name in enumerate(names)}
        self._folded = folded if len(folded) == len(self.names) else {}
        if len(self._exact) < len(self.names):
            raise UsageError(f"a label name is given twice: {', '.join(self.names)}")

    def find(self, name: str) -> int | None:
        """The id of a name, or None; a number names its LABEL_<number> of an unnamed model."""
        unnamed = self._exact.get(f"LABEL_{name}")
        return self._exact.get(name, self._folded.get(_fold(name), unnamed))


def model_labels(config_names: Sequence[str], task_names: Sequence[str]) -> list[str]:
    """A classifier's own label names, checked to be a task's.

    Raises:
        UsageError: showing both lists, if they are not the same names.
    """
    task = LabelNames(task_names)
    found = [task.find(name) for name in config_names]
    if None in found or len(set(found)) != len(task_names):
        raise UsageError(
            f"the model's labels are {', '.join(config_names)}, the task's "
            f"{', '.join(task_names)}: give a model of this task, or name the labels in the order "
            "of its ids with --label_names (or in its config.json, id2label)"
        )
    return list(config_names)


def _fold(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.casefold())
