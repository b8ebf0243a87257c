"""What a cell of a comparison found, in a form that fits into a study's storage as JSON.

Shapes: n examples of a set.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

UNION = "union"
"""The role of a set whose texts are in other sets too; it is shown, and is no part of a mean."""


@dataclass(frozen=True)
class SetOutcome:
    """The accuracy of one run on one set."""

    role: str
    """dev (in distribution), ood, or `UNION`."""
    correct: NDArray[np.bool_]
    """[n] whether each example was classified correctly."""
    more: Mapping[str, float] = field(default_factory=dict)
    """Further scores by name, as shares from 0 to 1: f1, consistency, accuracies per group."""

    @property
    def accuracy(self) -> float:
        """The share of correct examples, from 0 to 1."""
        return float(self.correct.mean())

    def as_json(self) -> dict[str, Any]:
        """One bit per example, as base64."""
        packed = base64.b64encode(np.packbits(self.correct).tobytes()).decode()
        n = len(self.correct)
        return {"role": self.role, "n": n, "correct": packed, "more": dict(self.more)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SetOutcome:
        """What `as_json` wrote."""
        packed = np.frombuffer(base64.b64decode(content["correct"]), np.uint8)
        bits = np.unpackbits(packed, count=content["n"]).astype(bool)
        return cls(content["role"], bits, content["more"])


@dataclass(frozen=True)
class Outcome:
    """What one run found, and what it took."""

    sets: dict[str, SetOutcome]
    """By the name of the set, in the task's order."""
    seconds: float
    """The time of the run with its stages and evaluation, without the imports."""
    memory_mb: float
    """The peak memory: of the GPU where there is one, else of the process."""
    machine: str
    """The name of the computer."""
    folder: str
    """The run folder on that computer."""
    warnings: tuple[str, ...] = ()
    """What the run warned of, each warning once."""

    @property
    def dev(self) -> float:
        """The accuracy on the in-distribution set."""
        return next(one.accuracy for one in self.sets.values() if one.role == "dev")

    def as_json(self) -> dict[str, Any]:
        """The outcome as JSON values."""
        return {
            "sets": {name: one.as_json() for name, one in self.sets.items()},
            "seconds": self.seconds,
            "memory_mb": self.memory_mb,
            "machine": self.machine,
            "folder": self.folder,
            "warnings": [*self.warnings],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Outcome:
        """What `as_json` wrote."""
        sets = {name: SetOutcome.from_json(one) for name, one in content["sets"].items()}
        warnings = tuple(content.get("warnings", ()))
        return cls(**{**content, "sets": sets, "warnings": warnings})
