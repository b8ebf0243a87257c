"""The figures of a comparison for other programs: LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from masktuning.experiments.comparison_result import Comparison
from masktuning.experiments.plan import Point
from masktuning.experiments.report_tables import Table, show_ratio, signed
from masktuning.experiments.statistics import (
    OOD_MEAN,
    Difference,
    Score,
    SetStatistics,
)

_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "\\": "\\textbackslash{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
}
_CSV = (
    *("variant", "set", "role", "score", "mean", "sd", "n_seeds"),
    *("difference", "low", "high", "n_common_seeds"),
)


def escaped(text: str) -> str:
    """Text for LaTeX, with its special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def as_latex(table: Table, notes: Sequence[str]) -> str:
    """A tabular for the package booktabs; the differences are in a second line of each variant."""
    columns = table.columns()
    lines = ["% \\usepackage{booktabs}", *(f"% {note}" for note in notes)]
    lines += [f"\\begin{{tabular}}{{l{'c' * (len(columns) + 2)}}}", "\\toprule"]
    lines += [_latex_row(["method", *(c.heading for c in columns), "time", "memory"]), "\\midrule"]
    for name in table.order:
        found = table.statistics.get(name)
        if found is None:
            lines.append(_latex_row([name, *["-"] * (len(columns) + 2)]))
            continue
        ratios = [show_ratio(ratio) for ratio in (found.time_ratio, found.memory_ratio)]
        sets = [column.of(found) for column in columns]
        scores = [_latex_score(one.accuracy) if one else "-" for one in sets]
        lines.append(" & ".join([escaped(name), *scores, *ratios]) + " \\\\")
        differences = [one.difference if one else None for one in sets]
        if any(differences):
            cells = ["", *map(_latex_difference, differences), "", ""]
            lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def as_csv(table: Table) -> str:
    """One row per variant, set and score, with shares from 0 to 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for name in table.order:
        found = table.statistics.get(name)
        if found is None:
            continue
        sets = dict(found.sets)
        if found.mean_ood:
            sets[OOD_MEAN] = found.mean_ood
        for set_name, one in sets.items():
            writer.writerows(_csv_rows(name, set_name, one))
    return text.getvalue()


def as_json(comparison: Comparison, table: Table) -> dict[str, Any]:
    """Everything that is known, with the figures of every seed, as shares from 0 to 1."""
    plan = comparison.plan
    return {
        "task": comparison.task,
        "baseline": comparison.baseline,
        "plan": {
            "variants": [variant.name for variant in plan.variants],
            "grids": {name: [dict(p) for p in points] for name, points in plan.grids.items()},
            "search_seeds": list(plan.search_seeds),
            "final_seeds": list(plan.final_seeds),
        },
        "search": {name: _searched(points) for name, points in comparison.search.items()},
        "choices": {name: dict(point) for name, point in comparison.choices.items()},
        "accuracy_of_one_label": comparison.constant,
        "results": {name: _result(comparison, table, name) for name in table.statistics},
        "failures": comparison.failures,
        "identity": comparison.identity,
    }


def _searched(points: dict[Point, list[float]]) -> list[dict[str, Any]]:
    return [{"point": dict(point), "dev": values} for point, values in points.items()]


def _result(comparison: Comparison, table: Table, name: str) -> dict[str, Any]:
    """The statistics of a variant, and what each of its runs took."""
    runs = {
        str(seed): {
            "seconds": run.seconds,
            "memory_mb": run.memory_mb,
            "machine": run.machine,
            "folder": run.folder,
            "warnings": [*run.warnings],
        }
        for seed, run in sorted(comparison.outcomes[name].items())
    }
    return {**asdict(table.statistics[name]), "runs": runs}


def _csv_rows(variant: str, set_name: str, one: SetStatistics) -> list[list[Any]]:
    scores = {"accuracy": one.accuracy, **one.more}
    rows = []
    for score, values in scores.items():
        d = one.difference if score == "accuracy" else None
        difference = [d.mean, d.low, d.high, len(d.seeds)] if d else [""] * 4
        sd = "" if values.sd is None else values.sd
        row = [variant, set_name, one.role, score, values.mean, sd, len(values.by_seed)]
        rows.append([*row, *difference])
    return rows


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + " \\\\"


def _latex_score(score: Score) -> str:
    sd = "" if score.sd is None else f" \\pm {100 * score.sd:.2f}"
    return f"${100 * score.mean:.2f}{sd}$"


def _latex_difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    mean, low, high = map(signed, (difference.mean, difference.low, difference.high))
    mark = "^{*}" if difference.excludes_zero else ""
    return f"{{\\footnotesize ${mean}\\ [{low}, {high}]{mark}$}}"
