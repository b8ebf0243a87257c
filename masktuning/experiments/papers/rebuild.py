"""Runs the comparisons of a table and fills it in."""

from __future__ import annotations

from collections.abc import Mapping

from masktuning.experiments.comparison import compare
from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.papers.layout import Layout
from masktuning.experiments.papers.requests import Part, Wanted, notes, parts
from masktuning.experiments.papers.spec import PaperTable
from masktuning.experiments.report import write_report


def rebuild(table: PaperTable, wanted: Wanted, protocol: str) -> str:
    """The table as text, after all runs that it lacks; it is written to files as well.

    The table is written anew after each comparison, so that one that is stopped has left what was
    found until then.
    """
    found: dict[tuple[str, str, str], Mapping[int, Outcome]] = {}
    lines = notes(table, wanted)
    for line in lines:
        print(line)
    todo = list(parts(table, wanted))
    layout = Layout(table, protocol, found, lines)
    for i, part in enumerate(todo, 1):
        print(f"\n{i} of {len(todo)}: {part.model.label} on {part.task}", flush=True)
        comparison = run_part(part)
        for method in part.methods:
            outcomes = comparison.outcomes.get(method.variant.name, {})
            found[part.model.name, method.name, part.task] = outcomes
        lines += problems(part, comparison)
        paths = layout.write(wanted.output_dir)
    written = ", ".join(map(str, paths))
    return f"\n{layout.text()}\n\nwritten: {written}; a report of each comparison is next to them"


def run_part(part: Part) -> Comparison:
    """One comparison, and its own report in its folder."""
    comparison = compare(part.request)
    write_report(comparison, part.request.folder_of(part.task))
    return comparison


def problems(part: Part, comparison: Comparison) -> list[str]:
    """A line for each run that failed, and for each method that has not all of its seeds."""
    where = f"{part.model.label} on {part.task}"
    lines = [f"{where}: {key} failed: {error}" for key, error in comparison.failures.items()]
    for method in part.methods:
        n = len(comparison.outcomes.get(method.variant.name, {}))
        if n < part.request.seeds:
            lines.append(f"{where}: {method.label} has {n} of {part.request.seeds} seeds.")
    return lines
