"""Runs the comparisons of a table and fills it in."""

from __future__ import annotations

from masktuning.config.errors import UsageError
from masktuning.experiments.comparison import compare
from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.papers.layout import Layout
from masktuning.experiments.papers.requests import Part, Wanted, notes, parts
from masktuning.experiments.papers.spec import PaperTable
from masktuning.experiments.report import write_report


def rebuild(table: PaperTable, wanted: Wanted, protocol: str) -> tuple[str, bool]:
    """The table as text, after all runs that it lacks; it is written to files as well.

    The table is written anew after each comparison, so that one that is stopped has left what was
    found until then. A comparison that cannot be run, for example because its texts or its model
    are not there, is named under the table, and the others go on.

    Raises:
        UsageError: if none of the comparisons can be run; with the reason of the last one.
    """
    found: dict[tuple[str, str, str], dict[int, Outcome]] = {}
    lines = notes(table, wanted)
    for line in lines:
        print(line)
    todo = list(parts(table, wanted))
    if not todo:
        raise UsageError(" ".join(["there is nothing to compare.", *lines]))
    layout = Layout(table, protocol, found, lines)
    for i, part in enumerate(todo, 1):
        print(f"\n{i} of {len(todo)}: {part.where}", flush=True)
        try:
            comparison = run_part(part)
        except UsageError as error:
            if i == len(todo) and not found:
                raise
            lines.append(f"{part.where} has no result: {error}.")
            print(lines[-1], flush=True)
        else:
            found.update(outcomes(part, comparison))
            lines += problems(part, comparison)
        paths = layout.write(wanted.output_dir)
    written = ", ".join(map(str, paths))
    text = f"\n{layout.text()}\n\nwritten: {written}; reports of the comparisons are next to them"
    return text, any(found.values())


def run_part(part: Part) -> Comparison:
    """One comparison, and its own report in its folder."""
    comparison = compare(part.request)
    write_report(comparison, part.request.folder_of(part.task))
    return comparison


def outcomes(part: Part, comparison: Comparison) -> dict[tuple[str, str, str], dict[int, Outcome]]:
    """The final runs of a part by model, method and task, and by seed."""
    return {
        (part.model.name, method.name, part.task): comparison.outcomes.get(method.variant.name, {})
        for method in part.methods
    }


def problems(part: Part, comparison: Comparison) -> list[str]:
    """A line for each run that failed, and for each method that has not all of its seeds."""
    lines = [f"{part.where}: {key} failed: {error}" for key, error in comparison.failures.items()]
    for method in part.methods:
        n = len(comparison.outcomes.get(method.variant.name, {}))
        if n < part.request.seeds:
            lines.append(f"{part.where}: {method.label} has {n} of {part.request.seeds} seeds.")
    return lines
