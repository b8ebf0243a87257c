"""The report of a comparison: text for the terminal, and files for papers and programs."""

from __future__ import annotations

from pathlib import Path

from masktuning.config.files import make, write, write_json
from masktuning.experiments import plot
from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.report_formats import as_csv, as_json, as_latex
from masktuning.experiments.report_sentences import (
    choices,
    conditions,
    findings,
    gaps,
    legend,
    no_better_than_one_label,
    warnings,
)
from masktuning.experiments.report_tables import (
    Table,
    as_markdown,
    as_text,
    further_scores,
    wide,
)
from masktuning.experiments.statistics import lead, summarize
from masktuning.experiments.words import counted

NAME = "comparison"
"""The name of the report's files, without their endings."""


def write_report(comparison: Comparison, folder: str | Path) -> str:
    """Writes comparison.md, .tex, .csv, .json and .svg into a folder.

    The comparison may be incomplete; the report says what is missing. The baseline is shown first,
    then the other variants, from the one with the greatest lead out of distribution to the one with
    the least.

    Returns:
        The report for the terminal.

    Raises:
        UsageError: if the runs were not measured on the same sets, or the folder cannot be made.
    """
    folder = Path(folder)
    table = arrange(comparison)
    make(folder)
    undrawn = plot.draw(table.statistics, comparison.baseline, folder / f"{NAME}.svg")
    write(folder / f"{NAME}.tex", as_latex(table, [_title(comparison), *legend(comparison, table)]))
    write(folder / f"{NAME}.csv", as_csv(table))
    write_json(folder / f"{NAME}.json", as_json(comparison, table))
    write(folder / f"{NAME}.md", _markdown(comparison, table, drawn=undrawn is None))
    endings = "md, .tex, .csv, .json" + (", .svg" if undrawn is None else "")
    last = [f"Written to {folder}: {NAME}.{endings}", *([undrawn] if undrawn else [])]
    told = warnings(comparison)
    found = [*findings(comparison, table), *no_better_than_one_label(comparison, table)]
    parts = [[_title(comparison)], found]
    parts += [["Messages of the runs:", *told] if told else [], [as_text(table)]]
    parts += [legend(comparison, table), choices(comparison, table), gaps(comparison), last]
    return "\n\n".join("\n".join(part) for part in parts if part)


def arrange(comparison: Comparison) -> Table:
    """The statistics of a comparison, with its variants in the order of the report."""
    found = summarize(comparison.outcomes, comparison.baseline)
    base = found.get(comparison.baseline)

    def rank(name: str) -> tuple[bool, bool, float]:
        one = found.get(name)
        return name != comparison.baseline, one is None, -lead(one, base) if one else 0.0

    names = [variant.name for variant in comparison.plan.variants]
    order = tuple(sorted(names, key=rank))
    return Table(order, {name: found[name] for name in order if name in found})


def _title(comparison: Comparison) -> str:
    plan = comparison.plan
    wanted = len(plan.variants) * len(plan.final_seeds)
    done = sum(len(runs) for runs in comparison.outcomes.values())
    methods, runs = counted(len(plan.variants), "method"), counted(wanted, "final run")
    return f"{methods} on {comparison.task}: {'' if done == wanted else f'{done} of '}{runs}."


def _markdown(comparison: Comparison, table: Table, drawn: bool) -> str:
    parts = [f"# Comparison on {comparison.task}", _title(comparison)]
    parts += findings(comparison, table) + no_better_than_one_label(comparison, table)
    if told := warnings(comparison):
        parts += ["Messages of the runs:", "\n".join(f"- {one}" for one in told)]
    parts += [as_markdown(wide(table, table.columns())), " ".join(legend(comparison, table))]
    if drawn:
        parts.append(f"![In-distribution against out-of-distribution accuracy]({NAME}.svg)")
    if common := conditions(comparison):
        parts += ["## What all runs have in common", "\n\n".join(common)]
    parts += ["## What was chosen, and by what", "\n\n".join(choices(comparison, table))]
    if missing := gaps(comparison):
        parts += ["## What is missing", "\n\n".join(missing)]
    if scores := further_scores(table):
        parts.append("## Further scores")
        for name, rows in scores.items():
            parts += [f"On {name}, in per cent:", as_markdown(rows)]
    return "\n\n".join(parts) + "\n"
