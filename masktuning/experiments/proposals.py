"""Proposes grid points one after the other, each from what the earlier ones gave on dev.

A proposal is a function of the results so far alone: whoever knows them computes the same one. So
nothing has to be kept or agreed on, and a search that was killed goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError
from masktuning.experiments.plan import FIRST_SEARCH_SEED, SEARCH, Cell, Plan, Point
from masktuning.experiments.storage import import_optuna

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Space = Mapping[str, tuple[str, ...]]
"""The values of each searched option, or one word `low..high`."""
_BETWEEN = ".."
_MOST_AT_RANDOM = 10


def is_range(values: tuple[str, ...]) -> bool:
    """Whether the values of an option are a range to draw from."""
    return any(map(_is_range, values))


def ends(name: str, values: tuple[str, ...]) -> tuple[str, str]:
    """Both ends of a range.

    Raises:
        UsageError: unless it is one range of two numbers, the lower one first.
    """
    low, _, high = values[0].partition(_BETWEEN)
    if len(values) > 1 or not float(low) < float(high):
        raise UsageError(f"--grid {name}={','.join(values)}: write a range as low..high")
    return low, high


def _is_range(value: str) -> bool:
    low, between, high = value.partition(_BETWEEN)
    try:
        float(low), float(high)
    except ValueError:  # the path of a folder above this one, for example
        return False
    return bool(between)


def with_proposals(
    plan: Plan, spaces: Mapping[str, Space], dev: Mapping[str, float], failed: Collection[str]
) -> Plan:
    """The plan with the grid points that are proposed given the results so far.

    Args:
        plan: the comparison; the grids of the variants in its `proposals` are replaced.
        spaces: what those variants search.
        dev: the in-distribution accuracy of each cell that is done, by its key.
        failed: the keys of the cells that failed.
    """
    if not plan.proposals:
        return plan
    grids, proposals = dict(plan.grids), dict(plan.proposals)
    for name, trials in plan.proposals.items():
        found, complete = _points(name, spaces[name], trials, plan.search_seeds, dev, failed)
        grids[name] = tuple(dict.fromkeys(found))  # equal ones are run once
        if complete:
            proposals[name] = len(grids[name])
    return replace(plan, grids=grids, proposals=proposals)


def _points(
    variant: str,
    space: Space,
    trials: int,
    seeds: tuple[int, ...],
    dev: Mapping[str, float],
    failed: Collection[str],
) -> tuple[list[Point], bool]:
    """The points of one variant so far, and whether all of them have ended."""
    optuna = import_optuna()
    study = optuna.create_study(direction="maximize")  # in memory
    distributions = {name: _distribution(name, values) for name, values in space.items()}
    found: list[Point] = []
    for number in range(trials):
        study.sampler = optuna.samplers.TPESampler(
            seed=FIRST_SEARCH_SEED + number,
            n_startup_trials=min(_MOST_AT_RANDOM, max(1, trials // 2)),
        )
        trial = study.ask(distributions)
        point = tuple((name, _as_word(trial.params[name])) for name in space)
        found.append(point)
        keys = [Cell(variant, point, seed, SEARCH).key for seed in seeds]
        if any(key in failed for key in keys):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif all(key in dev for key in keys):
            study.tell(trial, fmean(dev[key] for key in keys))
        else:
            return found, False
    return found, True


def _distribution(name: str, values: tuple[str, ...]) -> BaseDistribution:
    """What an option's values are drawn from; logarithmic where the ends differ tenfold."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if not is_range(values):
        return CategoricalDistribution(values)
    low, high = ends(name, values)
    if low.lstrip("-").isdigit() and high.isdigit():
        return IntDistribution(int(low), int(high), log=0 < 10 * int(low) <= int(high))
    return FloatDistribution(float(low), float(high), log=0 < 10 * float(low) <= float(high))


def _as_word(value: Any) -> str:
    """The value of an option as it is written on a command line."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
