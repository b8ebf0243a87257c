"""Shows how far a comparison is: a line for each run that ended, and a bar with the time left."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from masktuning.experiments.plan import FINAL, Cell, Plan
from masktuning.experiments.words import in_words

if TYPE_CHECKING:
    from masktuning.experiments.outcome import Outcome
    from masktuning.experiments.study import Progress

_BAR = "{n_fmt} of {total_fmt} runs |{bar}| {elapsed} so far{postfix}"


class Board:
    """The progress of one comparison.

    Args:
        count: how many runs the comparison has.
        jobs: how many runs go on at a time here; the others that run elsewhere are not known.
        bar: whether to show a bar where there is a terminal; lines are printed anyway.
    """

    def __init__(self, count: int, jobs: int, bar: bool) -> None:
        self._count, self._jobs = count, jobs
        self._shown: set[str] = set()
        self._bar = tqdm(total=count, bar_format=_BAR, disable=None if bar else True, leave=False)
        self._first, self._waits = True, False

    def show(self, plan: Plan, progress: Progress) -> None:
        """Prints what ended since the last call, of a plan with all points proposed so far."""
        ended = {**progress.outcomes, **progress.failures}
        cells = [*plan.search_cells(), *_all_final(plan, progress)]
        mine = {cell.key: cell for cell in cells if cell.key in ended}
        if self._first and mine:
            tqdm.write(f"{len(mine)} of {self._count} runs were done before")
            self._shown |= mine.keys()
        self._first = False
        for key in sorted(mine.keys() - self._shown):
            tqdm.write(_line(mine[key], progress))
        self._shown |= mine.keys()
        self._bar.n, self._bar.total = len(mine), plan.count()
        self._bar.set_postfix_str(f"about {in_words(self._left(plan, progress, mine))} left")

    def refresh(self) -> None:
        """Shows the time that has passed."""
        self._bar.refresh()

    def say_waiting(self, keys: set[str]) -> None:
        """Says once that the runs that are left go on elsewhere."""
        if keys and not self._waits:
            tqdm.write(f"waiting for runs of other processes: {', '.join(sorted(keys))}")
        self._waits = bool(keys)

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()

    def _left(self, plan: Plan, progress: Progress, ended: dict[str, Cell]) -> float | None:
        """The seconds that are left, from the runs that ended; None before the first one."""
        by_variant: dict[str, list[float]] = {}
        for key, cell in ended.items():
            if key in progress.outcomes:
                by_variant.setdefault(cell.variant, []).append(progress.outcomes[key].seconds)
        if not by_variant:
            return None
        means = {name: fmean(values) for name, values in by_variant.items()}
        usual = fmean(means.values())
        planned = {variant.name: plan.count_of(variant.name) for variant in plan.variants}
        done = dict.fromkeys(planned, 0)
        for cell in ended.values():
            done[cell.variant] += 1
        left = sum(max(0, planned[name] - done[name]) * means.get(name, usual) for name in planned)
        return left / max(self._jobs, len(progress.running))


def _all_final(plan: Plan, progress: Progress) -> list[Cell]:
    """The final cells of whatever grid point, among those that ended."""
    return [
        cell
        for variant in plan.variants
        for point in plan.grids[variant.name]
        for cell in plan.final_cells({variant.name: point})
        if cell.key in progress.outcomes or cell.key in progress.failures
    ]


def _line(cell: Cell, progress: Progress) -> str:
    """What is said of a run that ended."""
    if cell.key in progress.failures:
        return f"{cell.key}: failed: {progress.failures[cell.key]}"
    found: Outcome = progress.outcomes[cell.key]
    sets = found.sets if cell.stage == FINAL else {}
    far = [one.accuracy for one in sets.values() if one.role == "ood"]
    mean = f", {100 * fmean(far):.1f} out of distribution" if far else ""
    if len(far) > 1:
        mean += f" (mean of {len(far)} sets)"
    return f"{cell.key}: dev {100 * found.dev:.1f}{mean}, {in_words(found.seconds)}"
