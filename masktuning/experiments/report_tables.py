"""The tables of a comparison as rows of cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from masktuning.evaluation.tables import aligned
from masktuning.experiments.statistics import (
    Difference,
    Score,
    SetStatistics,
    VariantStatistics,
)

MARK = "*"
"""Marks a difference whose interval excludes 0."""
MISSING = "-"
_WIDEST = 120  # columns of a terminal that one table may take

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Column:
    """A set, or the mean of several, as a column of the tables."""

    heading: str
    of: Callable[[VariantStatistics], SetStatistics | None]


@dataclass(frozen=True)
class Table:
    """The variants in the order in which they are shown."""

    order: tuple[str, ...]
    """The names of all variants of the plan."""
    statistics: Mapping[str, VariantStatistics]
    """Those of the variants that have an outcome."""

    @property
    def roles(self) -> dict[str, str]:
        """The sets with their roles, in the task's order; none if there is no outcome yet."""
        first = next(iter(self.statistics.values()), None)
        return {name: one.role for name, one in first.sets.items()} if first else {}

    @property
    def dev(self) -> list[str]:
        """The names of the in-distribution sets."""
        return [name for name, role in self.roles.items() if role == "dev"]

    @property
    def ood(self) -> list[str]:
        """The names of the out-of-distribution sets."""
        return [name for name, role in self.roles.items() if role == "ood"]

    def columns(self) -> list[Column]:
        """Every set, and the mean over the out-of-distribution sets if there are several."""
        found = [_set_column(name, role) for name, role in self.roles.items()]
        return [*found, _MEAN_COLUMN] if len(self.ood) > 1 else found

    def summary_columns(self) -> list[Column]:
        """The first in-distribution set, and all out-of-distribution sets as one column."""
        dev = [_set_column(name, "dev") for name in self.dev[:1]]
        ood = [_set_column(name, "ood") for name in self.ood]
        return [*dev, *([_MEAN_COLUMN] if len(ood) > 1 else ood)]


_MEAN_COLUMN = Column("mean OOD", lambda variant: variant.mean_ood)


def _set_column(name: str, role: str) -> Column:
    heading = name if name == role else f"{name} ({role})"
    return Column(heading, lambda variant: variant.sets[name])


def show_score(score: Score) -> str:
    """The mean and standard deviation in per cent."""
    sd = "" if score.sd is None else f" ± {100 * score.sd:.2f}"
    return f"{100 * score.mean:.2f}{sd}"


def show_difference(difference: Difference | None) -> str:
    """A difference in points of per cent, with its interval and its mark; "" if there is none."""
    if difference is None:
        return ""
    mean, low, high = map(signed, (difference.mean, difference.low, difference.high))
    mark = f" {MARK}" if difference.excludes_zero else ""
    return f"{mean} [{low}, {high}]{mark}"


def signed(share: float) -> str:
    """A difference in points of per cent with its sign, and never -0.00."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"


def show_ratio(ratio: float | None) -> str:
    """A ratio as 1.23x."""
    return MISSING if ratio is None else f"{ratio:.2f}x"


def wide(table: Table, columns: Sequence[Column]) -> Rows:
    """One row per variant: accuracy and difference in every column, then time and memory."""
    head = ["method"]
    for column in columns:
        head += [column.heading, "difference"]
    rows: Rows = [(*head, "time", "memory")]
    for name in table.order:
        found = table.statistics.get(name)
        if found is None:
            rows.append((name, *[MISSING, ""] * len(columns), MISSING, MISSING))
            continue
        row = [name]
        for column in columns:
            row += _cells(column.of(found))
        rows.append((*row, show_ratio(found.time_ratio), show_ratio(found.memory_ratio)))
    return rows


def of_set(table: Table, column: Column) -> Rows:
    """One row per variant that has an outcome, for one set."""
    rows: Rows = [("method", column.heading, "difference")]
    rows += [(name, *_cells(column.of(found))) for name, found in _found(table)]
    return rows


def further_scores(table: Table) -> dict[str, Rows]:
    """By the name of each set that has other scores than its accuracy: one row per variant."""
    tables = {}
    for name in table.roles:
        scores = list(dict.fromkeys(s for _, one in _found(table) for s in one.sets[name].more))
        rows: Rows = [("method", *scores)]
        for variant, one in _found(table):
            more = one.sets[name].more
            cells = (show_score(more[s]) if s in more else MISSING for s in scores)
            rows.append((variant, *cells))
        if scores:
            tables[name] = rows
    return tables


def as_text(table: Table) -> str:
    """One table if it fits into a terminal, else a summary and a small table per set."""
    whole = aligned(wide(table, table.columns()))
    if max(map(len, whole.splitlines())) <= _WIDEST:
        return whole
    summary = table.summary_columns()
    shown = {column.heading for column in summary}
    parts = [wide(table, summary)]
    parts += [of_set(table, one) for one in table.columns() if one.heading not in shown]
    return "\n\n".join(map(aligned, parts))


def as_markdown(rows: Rows) -> str:
    """Rows as a Markdown table; the first cell of each is the name of a variant."""
    head, *body = [tuple(cell.replace("|", "\\|") for cell in row) for row in rows]
    named = [(f"`{name}`", *cells) for name, *cells in body]
    lines = [head, ("---",) * len(head), *named]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(found: SetStatistics | None) -> list[str]:
    if found is None:
        return [MISSING, ""]
    return [show_score(found.accuracy), show_difference(found.difference)]


def _found(table: Table) -> list[tuple[str, VariantStatistics]]:
    return [(n, table.statistics[n]) for n in table.order if n in table.statistics]
