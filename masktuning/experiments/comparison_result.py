"""What a comparison found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from masktuning.experiments.choice import SearchScores
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.plan import Plan, Point


@dataclass(frozen=True)
class Comparison:
    """The figures of all runs of a comparison."""

    task: str
    baseline: str
    plan: Plan
    choices: dict[str, Point]
    search: SearchScores
    outcomes: dict[str, dict[int, Outcome]]
    failures: dict[str, str]
    identity: dict[str, Any]
