"""Everything that the report of a comparison is written from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Plan, Point


@dataclass(frozen=True)
class Comparison:
    """The runs of a comparison that have ended so far, and the plan that they follow."""

    task: str
    """The name of the task."""
    baseline: str
    """The name of the variant that the others are compared with."""
    plan: Plan
    choices: dict[str, Point]
    """The grid point of each variant's final runs, by its name; a variant whose search has not
    ended is missing."""
    search: dict[str, dict[Point, list[float]]]
    """The dev accuracies of the searched grid points, one per seed, by the name of the variant."""
    outcomes: dict[str, dict[int, Outcome]]
    """The final runs, by the name of the variant and by seed."""
    failures: dict[str, str]
    """The error of each cell that failed, as one line, by the key of the cell."""
    identity: dict[str, Any]
    """What the figures depend on; see `identity_of`."""
    constant: dict[str, float] = field(default_factory=dict)
    """By the name of each set, the accuracy from 0 to 1 of a classifier that gives every text the
    most frequent label of the set."""
    flags: list[str] = field(default_factory=list)
    """The words of `masktuning.train` that all runs have."""
