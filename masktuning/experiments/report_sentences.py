"""What a report says in words: what it found, how to read it, and what was chosen by what."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence

from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.plan import Point
from masktuning.experiments.report_tables import (
    MARK,
    Table,
    show_difference,
    show_ratio,
    show_score,
)
from masktuning.experiments.statistics import lead

_EQUAL = 1e-9  # means of accuracies that are closer differ by rounding alone


def findings(comparison: Comparison, table: Table) -> list[str]:
    """Which variant holds up best, by how much and at what cost."""
    if not table.statistics:
        return []
    if not table.ood:
        return [
            "No out-of-distribution set was measured, so nothing here says how the methods hold up "
            "on other texts; --eval_files names such sets."
        ]
    base = table.statistics.get(comparison.baseline)
    leads = {name: lead(one, base) for name, one in table.statistics.items()}
    best = max(leads, key=leads.__getitem__)
    found = table.statistics[best]
    assert found.mean_ood is not None
    first = f"Best out of distribution: {best}, with a mean accuracy of "
    first += show_score(found.mean_ood.accuracy)
    equal = [name for name in leads if name != best and _equal(table, leads, name, best)]
    too = [f"{', '.join(equal)} reached the same."] if equal else []
    if best == comparison.baseline:
        return [f"{first}, which is the baseline.", *too]
    difference = found.mean_ood.difference
    if difference is None:
        return [f"{first}. No seed was run with the baseline, {comparison.baseline}, too.", *too]
    cost = ""
    if found.time_ratio is not None and found.memory_ratio is not None:
        cost = f", at {show_ratio(found.time_ratio)} the time and "
        cost += f"{show_ratio(found.memory_ratio)} the memory"
    lines = [f"{first}, {show_difference(difference)} against {comparison.baseline}{cost}."]
    if not difference.excludes_zero:
        lines.append("The interval of this difference contains 0, so it may be chance.")
    dev = found.dev.difference
    if dev is not None:
        lines.append(
            f"In distribution, on {table.dev[0]}, its difference is {show_difference(dev)}."
        )
    return [*lines, *too]


def no_better_than_one_label(comparison: Comparison, table: Table) -> list[str]:
    """The variants whose mean accuracy on a set one label for all of its texts would reach."""
    lines = []
    for name in table.roles:
        reached = comparison.constant.get(name)
        if reached is None:
            continue
        means = {v: one.sets[name].accuracy.mean for v, one in table.statistics.items()}
        low = [v for v in table.order if v in means and means[v] <= reached + _EQUAL]
        whose = f"the mean accuracy of {', '.join(low)} is not"
        if len(low) == len(means):
            whose = "no mean accuracy is"
        if low:
            lines.append(
                f"On {name}, {whose} above {100 * reached:.2f}, which a classifier reaches that "
                "gives every text the most frequent label of this set."
            )
    return lines


def warnings(comparison: Comparison) -> list[str]:
    """What the final runs warned of, each message once with the runs that it is from."""
    runs: dict[str, dict[str, list[int]]] = {}
    for name, by_seed in comparison.outcomes.items():
        for seed, message in ((s, m) for s in sorted(by_seed) for m in by_seed[s].warnings):
            runs.setdefault(message, {}).setdefault(name, []).append(seed)
    return [f"{_whose(comparison, those)}: {message}" for message, those in runs.items()]


def conditions(comparison: Comparison) -> list[str]:
    """What all runs have in common: their options, versions, and the sizes of the sets."""
    lines = []
    if comparison.flags:
        words = shlex.join(_without_secrets(comparison.flags))
        lines.append(f"Every run has the options `{words}`.")
    packages = ("masktuning", "torch", "transformers")
    versions = [
        f"{one} {comparison.identity[one]}" for one in packages if one in comparison.identity
    ]
    if versions:
        lines.append(f"The versions are {', '.join(versions)}.")
    run = next((run for by_seed in comparison.outcomes.values() for run in by_seed.values()), None)
    if run is not None:
        sizes = (f"{name} {len(one.correct)}" for name, one in run.sets.items())
        lines.append(f"Numbers of texts: {', '.join(sizes)}.")
    return lines


def legend(comparison: Comparison, table: Table) -> list[str]:
    """How to read the tables."""
    base = table.statistics.get(comparison.baseline)
    lines = ["Accuracies are in per cent: mean ± standard deviation over seeds."]
    if any(one.dev.difference for one in table.statistics.values()):
        lines.append(
            f"A difference is that to {comparison.baseline} on the same seeds and examples, with "
            "its 95 % bootstrap interval over seeds and examples."
        )
        lines.append(
            f"It is marked with {MARK} if the interval excludes 0; one interval in twenty does so "
            "by chance alone, and more do with few seeds."
        )
        if len({one.seeds for one in table.statistics.values()}) > 1:
            lines.append(
                "Not all have the same seeds, so the rows are ordered by these differences and not "
                "by the accuracies beside them."
            )
        lines += _one_seed(table)
    if len(table.ood) > 1:
        lines.append(
            f"The mean OOD is that over the {len(table.ood)} out-of-distribution sets, each "
            "counted once."
        )
    if base:
        lines.append(
            "Time and memory are relative to the baseline's run with the same seed, as a median "
            f"over seeds; its median run took {base.seconds:.1f} s and {base.memory_mb:.0f} MB."
        )
    runs = [run for one in comparison.outcomes.values() for run in one.values()]
    machines = sorted({run.machine for run in runs})
    if len(machines) > 1:
        lines.append(
            f"The runs were made on {len(machines)} machines ({', '.join(machines)}), which may "
            "differ in speed, so read times with care."
        )
    return lines


def choices(comparison: Comparison, table: Table) -> list[str]:
    """Which points were searched with which seeds, what was chosen, and what the figures are."""
    plan, final = comparison.plan, f"the {_seeds(comparison.plan.final_seeds)}"
    names = [variant.name for variant in plan.variants]
    searched = [name for name in names if plan.is_searched(name)]
    given = [name for name in names if name not in searched]
    lines = []
    if searched:
        dev = f" {table.dev[0]}" if table.dev else ""
        lines.append(
            f"Each grid point was trained with the search {_seeds(plan.search_seeds)} and judged "
            f"by its mean accuracy on the in-distribution set{dev}."
        )
        lines += [_choice(comparison, name) for name in searched]
        counts = sorted({len(plan.grids[name]) for name in searched})
        if len(counts) > 1:
            lines.append(
                f"The methods had from {counts[0]} to {counts[-1]} points to choose among; more "
                "of them are more chances of a high one on dev."
            )
        reused = sorted(set(plan.search_seeds) & set(plan.final_seeds))
        fresh = f"although the search had used {_listed(reused)} too"
        if not reused:
            fresh = "which the search had not used"
        lines.append(f"The chosen point of each method was then run anew with {final}, {fresh}.")
    if given:
        who = "The methods without a search were" if searched else "Nothing was searched: all were"
        lines.append(f"{who} run with their options as given and {final}.")
        points = {name: show_point(plan.grids[name][0]) for name in given}
        lines += [f"{name}: {point} was given." for name, point in points.items() if point]
    lines.append("All figures in the tables come from these runs alone.")
    if table.ood:
        lines.append("The out-of-distribution sets were not looked at for any choice.")
    return lines


def gaps(comparison: Comparison) -> list[str]:
    """What is missing, and the errors of the cells that failed; those lines are indented by 4."""
    lines = []
    wanted = comparison.plan.final_seeds
    for name in (variant.name for variant in comparison.plan.variants):
        have = comparison.outcomes.get(name, {})
        missing = [seed for seed in wanted if seed not in have]
        if missing and have:
            lines.append(f"{name} lacks {_seeds(missing)}.")
        elif missing:
            lines.append(f"{name} has no result yet.")
    if comparison.failures:
        lines.append(f"Failed cells ({len(comparison.failures)}):")
        lines += [f"    {cell}: {error}" for cell, error in comparison.failures.items()]
    return lines


def show_point(point: Point) -> str:
    """The options of a grid point as alpha=0.1, gate=label."""
    return ", ".join(f"{name}={value}" for name, value in point)


def _choice(comparison: Comparison, name: str) -> str:
    plan, search = comparison.plan, comparison.search.get(name, {})
    grid, seeds = plan.grids[name], len(plan.search_seeds)
    done = sum(len(search.get(point, [])) for point in grid)
    runs = f"{done} of its {len(grid) * seeds} search runs succeeded"
    if name not in comparison.choices:
        return f"{name}: no point is chosen yet ({runs})."
    point = comparison.choices[name]
    values = search.get(point, [])
    mean = f", with a mean of {100 * sum(values) / len(values):.2f} there" if values else ""
    left_out = "" if done == len(grid) * seeds else f" ({runs})"
    return f"{name}: {show_point(point)} was chosen among {len(grid)} points{mean}{left_out}."


def _one_seed(table: Table) -> list[str]:
    """A sentence about the variants that share only one seed with the baseline."""
    pairs = [(n, table.statistics[n].dev.difference) for n in table.order if n in table.statistics]
    names = [name for name, one in pairs if one is not None and one.examples_only]
    if not names:
        return []
    return [
        f"Only one seed is common to the baseline and {', '.join(names)}: that interval is over "
        "the examples alone and says nothing about other seeds."
    ]


def _without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line without options that hold an access token."""
    kept: list[str] = []
    dropped = False
    for word in words:
        if word.startswith("--"):
            dropped = word.partition("=")[0].endswith("token")
        kept += [] if dropped else [word]
    return kept


def _whose(comparison: Comparison, seeds: Mapping[str, list[int]]) -> str:
    """The runs of some variants, by their seeds."""
    have = {name: sorted(runs) for name, runs in comparison.outcomes.items() if runs}
    if seeds == have:
        return "all runs"
    return "; ".join(f"{name} {_seeds(those)}" for name, those in seeds.items())


def _seeds(seeds: Iterable[int]) -> str:
    listed = list(seeds)
    return f"seed{'s' if len(listed) > 1 else ''} {_listed(listed)}"


def _listed(values: Iterable[int]) -> str:
    return ", ".join(map(str, values))


def _equal(table: Table, leads: Mapping[str, float], one: str, best: str) -> bool:
    """Whether two variants have the same lead and, on seeds that may differ, the same accuracy."""
    means = [table.statistics[name].mean_ood for name in (one, best)]
    first, second = (found.accuracy.mean if found else 0.0 for found in means)
    return leads[best] - leads[one] < _EQUAL and abs(first - second) < _EQUAL
