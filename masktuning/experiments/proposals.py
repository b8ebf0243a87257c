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
    return any(_BETWEEN in value for value in values)


def ends(name: str, values: tuple[str, ...]) -> tuple[str, str]:
    """Both ends of a range.

    Raises:
        UsageError: unless it is one range of two numbers, the lower one first.
    """
    low, _, high = values[0].partition(_BETWEEN)
    try:
        in_order = float(low) < float(high)
    except ValueError:
        in_order = False
    if len(values) > 1 or not in_order:
        raise UsageError(f"--grid {name}={','.join(values)}: write a range as low..high")
    return low, high


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
    grids = dict(plan.grids)
    for name, trials in plan.proposals.items():
        grids[name] = _points(name, spaces[name], trials, plan.search_seeds, dev, failed)
    return replace(plan, grids=grids)


def _points(
    variant: str,
    space: Space,
    trials: int,
    seeds: tuple[int, ...],
    dev: Mapping[str, float],
    failed: Collection[str],
) -> tuple[Point, ...]:
    """The points of one variant so far, of which the last one may still be run."""
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
            break
    return tuple(dict.fromkeys(found))


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
