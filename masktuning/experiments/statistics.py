"""What the runs of a comparison say together: means over seeds, and differences to the baseline.

Shapes: S seeds, n examples of a set, R bootstrap samples, K different ways to resample the seeds,
P different patterns of an example over the seeds, V = 2S + 1 possible sums of an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from masktuning.config.errors import UsageError
from masktuning.experiments.outcome import Outcome

OOD_MEAN = "mean_ood"
"""In place of the name of a set: the mean over all out-of-distribution sets."""
_RESAMPLES = 10_000
_PERCENTILES = (2.5, 97.5)
_CHUNK = 1 << 18  # sums of examples that are held in memory at once

Outcomes = Mapping[str, Mapping[int, Outcome]]
"""What was found, by the name of the variant and by seed."""


@dataclass(frozen=True)
class Score:
    """A share from 0 to 1 over the seeds of a variant."""

    by_seed: dict[int, float]
    """The share of each seed, in the order of the seeds."""
    mean: float
    """The mean over the seeds."""
    sd: float | None
    """The standard deviation of a sample; None if there is only one seed."""

    @classmethod
    def over(cls, by_seed: Mapping[int, float]) -> Score:
        """The mean and standard deviation of one share per seed."""
        ordered = {seed: by_seed[seed] for seed in sorted(by_seed)}
        values = np.array(list(ordered.values()))
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        return cls(ordered, float(values.mean()), sd)


@dataclass(frozen=True)
class Difference:
    """The accuracy of a variant less that of the baseline, on the seeds that both have."""

    mean: float
    """The mean difference, from -1 to 1."""
    low: float
    """Lower end of its 95 % bootstrap interval."""
    high: float
    """Upper end of that interval."""
    seeds: tuple[int, ...]
    """The common seeds."""
    examples_only: bool
    """Whether there is only one common seed, so that the interval is over the examples alone and
    says nothing about other seeds."""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class SetStatistics:
    """A variant on one set, or on the mean of several."""

    role: str
    """dev (in distribution) or ood."""
    accuracy: Score
    difference: Difference | None
    """None for the baseline itself, and if no seed has both."""
    more: dict[str, Score]
    """Further scores by name: f1, consistency, accuracies per group."""


@dataclass(frozen=True)
class VariantStatistics:
    """Everything about one variant."""

    sets: dict[str, SetStatistics]
    """By the name of the set, in the task's order."""
    mean_ood: SetStatistics | None
    """The mean over all out-of-distribution sets, each counted once; None if there are none."""
    seconds: float
    """The median time of a run."""
    memory_mb: float
    """The median peak memory of a run."""
    time_ratio: float | None
    """The median, over the seeds that both have, of the time relative to the baseline's; None if
    no seed has both."""
    memory_ratio: float | None
    """The same for the peak memory."""

    @property
    def dev(self) -> SetStatistics:
        """The first in-distribution set, by which grid points are chosen."""
        return next(one for one in self.sets.values() if one.role == "dev")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run."""
        return tuple(self.dev.accuracy.by_seed)


def summarize(outcomes: Outcomes, baseline: str) -> dict[str, VariantStatistics]:
    """The statistics of every variant that has an outcome, in the order of `outcomes`.

    An interval is that of a percentile bootstrap in which the seeds and, independently, the
    examples are drawn with replacement. Every draw of seeds or examples serves both sides of a
    difference, and a draw of seeds serves all sets of a mean. Few seeds make such intervals too
    narrow: by a factor of about sqrt((S - 1) / S) in their part that comes from the seeds.

    Args:
        outcomes: the final runs, by the name of the variant and by seed.
        baseline: the variant that the others are compared with; it may have no outcome.

    Raises:
        UsageError: if the runs were not all measured on the same sets.
    """
    _check_same_sets(outcomes)
    base = outcomes.get(baseline, {})
    return {
        name: _of_variant(runs, {} if name == baseline else base, base)
        for name, runs in outcomes.items()
        if runs
    }


def lead(found: VariantStatistics, base: VariantStatistics | None) -> float:
    """How far a variant is ahead of the baseline: in mean out-of-distribution accuracy, or on dev.

    This is the mean difference on common seeds, since the accuracy of a variant that lacks a seed
    may be higher or lower for that reason alone. Without a common seed it is the difference of the
    mean accuracies.
    """
    one = found.mean_ood or found.dev
    if one.difference is not None:
        return one.difference.mean
    return one.accuracy.mean - ((base.mean_ood or base.dev).accuracy.mean if base else 0.0)


def _of_variant(
    runs: Mapping[int, Outcome], other: Mapping[int, Outcome], base: Mapping[int, Outcome]
) -> VariantStatistics:
    """One variant; `other` is what it is paired with: nothing if it is the baseline itself."""
    sets = next(iter(runs.values())).sets
    seeds = sorted(runs.keys() & other.keys())
    differences = {name: _differences(runs, other, seeds, name) for name in sets}
    found = {
        name: SetStatistics(
            one.role,
            _score(runs, [name]),
            _difference([differences[name]], seeds),
            _more(runs, name),
        )
        for name, one in sets.items()
    }
    ood = sorted(name for name, one in sets.items() if one.role == "ood")
    mean = None
    if ood:
        difference = _difference([differences[name] for name in ood], seeds)
        mean = SetStatistics("ood", _score(runs, ood), difference, {})
    return VariantStatistics(
        found,
        mean,
        float(np.median([run.seconds for run in runs.values()])),
        float(np.median([run.memory_mb for run in runs.values()])),
        _ratio(runs, base, lambda run: run.seconds),
        _ratio(runs, base, lambda run: run.memory_mb),
    )


def _score(runs: Mapping[int, Outcome], names: list[str]) -> Score:
    """The accuracy on a set, or the mean accuracy over several."""
    return Score.over(
        {
            seed: float(np.mean([run.sets[name].accuracy for name in names]))
            for seed, run in runs.items()
        }
    )


def _more(runs: Mapping[int, Outcome], name: str) -> dict[str, Score]:
    """The further scores of a set that all runs have; the ends of their intervals are left out."""
    found = [run.sets[name].more for run in runs.values()]
    return {
        score: Score.over({seed: run.sets[name].more[score] for seed, run in runs.items()})
        for score in found[0]
        if not score.endswith(("_low", "_high")) and all(score in one for one in found)
    }


def _ratio(
    runs: Mapping[int, Outcome], base: Mapping[int, Outcome], cost: Callable[[Outcome], float]
) -> float | None:
    """The median of the ratios of one seed each."""
    common = [seed for seed in runs if seed in base and cost(base[seed]) > 0]
    return float(np.median([cost(runs[s]) / cost(base[s]) for s in common])) if common else None


def _differences(
    runs: Mapping[int, Outcome], other: Mapping[int, Outcome], seeds: list[int], name: str
) -> NDArray[np.int8]:
    """[S, n] 1 where only `runs` is correct, -1 where only `other` is, else 0."""
    pairs = [(runs[seed].sets[name].correct, other[seed].sets[name].correct) for seed in seeds]
    return np.array([a.astype(np.int8) - b.astype(np.int8) for a, b in pairs], np.int8)


def _difference(differences: Sequence[NDArray[np.int8]], seeds: list[int]) -> Difference | None:
    """The mean over sets of the mean of each set's [S, n], with its interval."""
    if not seeds:
        return None
    mean = float(np.mean([one.mean(dtype=np.float64) for one in differences]).round(12))
    low, high = _interval(differences)
    return Difference(mean, low, high, tuple(seeds), examples_only=len(seeds) == 1)


def _interval(differences: Sequence[NDArray[np.int8]]) -> tuple[float, float]:
    """Both ends of the 95 % bootstrap interval, from an array [S, n] per set; the seed is fixed."""
    generator = np.random.default_rng(0)
    S = len(differences[0])
    counts_RS = generator.multinomial(S, np.full(S, 1 / S), _RESAMPLES)
    ways_KS, way_R = np.unique(counts_RS, axis=0, return_inverse=True)
    means_R = np.zeros(_RESAMPLES)
    for one in differences:
        shares_KV = _shares_of_sums(one, ways_KS)
        drawn_RV = generator.multinomial(one.shape[1], shares_KV[way_R.reshape(-1)])
        means_R += drawn_RV @ np.arange(-S, S + 1) / one.size
    # Rounded, so that sets whose differences cancel out give 0 and not a number next to it.
    low, high = np.percentile((means_R / len(differences)).round(12), _PERCENTILES)
    return float(low), float(high)


def _shares_of_sums(
    differences_Sn: NDArray[np.int8], ways_KS: NDArray[np.int64]
) -> NDArray[np.float64]:
    """[K, V] how often each sum from -S to S occurs among the examples, as a share.

    Once the seeds are drawn, an example counts through one number: its differences added up over
    the drawn seeds. So drawing n examples with replacement is a multinomial draw over the possible
    sums, exactly. Examples with the same pattern over the seeds have the same sum and are counted
    together, and the ways to draw the seeds are handled in chunks.
    """
    S, n = differences_Sn.shape
    V = 2 * S + 1
    patterns_PS, sizes_P = np.unique(differences_Sn.T, axis=0, return_counts=True)
    P = len(patterns_PS)
    rows = max(1, _CHUNK // P)
    chunks = []
    for start in range(0, len(ways_KS), rows):
        ways = ways_KS[start : start + rows]
        # In floating point, which is exact here, since integer matrix products are slow.
        sums = (ways.astype(np.float64) @ patterns_PS.T.astype(np.float64)).astype(np.int64)
        cells = sums + S + V * np.arange(len(ways))[:, None]
        weights = np.broadcast_to(sizes_P, cells.shape).ravel()
        chunks.append(np.bincount(cells.ravel(), weights, minlength=V * len(ways)).reshape(-1, V))
    return np.concatenate(chunks) / n


def _check_same_sets(outcomes: Outcomes) -> None:
    """Raises UsageError unless all runs have the same sets, in number of examples and in role."""
    first: tuple[str, dict[str, str]] | None = None
    for name, runs in outcomes.items():
        for seed, run in runs.items():
            sizes = {
                one: f"{len(content.correct)} ({content.role})" for one, content in run.sets.items()
            }
            where = f"{name} seed={seed} ({run.folder} on {run.machine})"
            first = first or (where, sizes)
            if sizes != first[1]:
                raise UsageError(
                    f"the runs of a comparison must be measured on the same examples, but "
                    f"{where} has the sets {_listed(sizes)}, and {first[0]} has "
                    f"{_listed(first[1])}"
                )


def _listed(sizes: Mapping[str, str]) -> str:
    return ", ".join(f"{name} of {n}" for name, n in sizes.items())
