"""Chooses the grid point of each variant by its accuracy on the in-distribution set alone."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from masktuning.experiments.plan import Cell, Plan, Point

SearchScores = dict[str, dict[Point, list[float]]]
"""The dev accuracies of the runs of each grid point, by variant."""


def search_scores(plan: Plan, dev: Mapping[str, float]) -> SearchScores:
    """The dev accuracies of the plan's search cells.

    Args:
        plan: the comparison.
        dev: the in-distribution accuracy of each cell that is done, by its key. Figures out of
            distribution are not handed to this file, so nothing can be chosen by them.
    """
    found: SearchScores = {}
    for cell in plan.search_cells():
        if cell.key in dev:
            found.setdefault(cell.variant, {}).setdefault(cell.point, []).append(dev[cell.key])
    return found


def choices(plan: Plan, dev: Mapping[str, float], failed: set[str]) -> dict[str, Point]:
    """The grid point with the best mean dev accuracy of each variant whose search has ended.

    A point with a failed run is not chosen, since its mean would be over other seeds; of points
    that are equal, the first one is. A variant with a single point has nothing to search.

    Args:
        plan: the comparison.
        dev: the in-distribution accuracies of the cells, by their keys.
        failed: the keys of the cells that failed.
    """
    chosen: dict[str, Point] = {}
    cells = plan.search_cells()
    scores = search_scores(plan, dev)
    for variant, points in plan.grids.items():
        if not plan.is_searched(variant):
            chosen[variant] = points[0]
        elif len(points) < plan.proposals.get(variant, 0):
            continue  # points are still to be proposed
        elif _has_ended([one for one in cells if one.variant == variant], dev, failed):
            whole = {
                point: fmean(values)
                for point, values in scores.get(variant, {}).items()
                if len(values) == len(plan.search_seeds)
            }
            if whole:
                chosen[variant] = max(whole, key=lambda point: whole[point])  # the first of equals
    return chosen


def _has_ended(cells: list[Cell], dev: Mapping[str, float], failed: set[str]) -> bool:
    return all(cell.key in dev or cell.key in failed for cell in cells)
