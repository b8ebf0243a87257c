"""Lays out what was found next to the paper's figures: as text, Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from masktuning.config.files import write
from masktuning.evaluation.tables import aligned
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.papers.spec import Column, Model, PaperTable, TableMethod

Found = Mapping[tuple[str, str, str], Mapping[int, Outcome]]
"""The final runs by model, method and task, and by seed."""
NOTHING = "-"
_TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%#_${}"},
        **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
        "±": "$\\pm$",
    }
)


@dataclass(frozen=True)
class Figure:
    """What was found for a row in one set: the scores of the seeds, from 0 to 1."""

    set: str
    scores: list[float]

    @property
    def text(self) -> str:
        """Mean and standard deviation in per cent; a dash if there is no score."""
        if not self.scores:
            return NOTHING
        deviation = f" ± {100 * self.deviation:.2f}" if len(self.scores) > 1 else ""
        return f"{100 * mean(self.scores):.2f}{deviation}"

    @property
    def deviation(self) -> float:
        """The sample standard deviation over the seeds, of which there must be two or more."""
        return stdev(self.scores)


@dataclass(frozen=True)
class Layout:
    """A table that is filled in as far as runs have ended."""

    table: PaperTable
    protocol: str
    found: Found
    notes: list[str]
    """Lines under the table besides those of the paper, such as runs that failed."""

    def columns(self) -> list[Column]:
        """The columns that the protocol shows."""
        return [column for column in self.table.columns if column.sets(self.protocol)]

    def rows(self) -> Iterator[tuple[Model, TableMethod]]:
        """The rows, model by model; those without a task among the columns are left out."""
        shown = {column.task for column in self.columns()}
        for model in self.table.models:
            for method in self.table.methods:
                if any(model.checkpoint(task) for task in shown & set(method.tasks)):
                    yield model, method

    def figures(self, model: Model, method: TableMethod, column: Column) -> list[Figure]:
        """What was found for a row in the sets of a column."""
        outcomes = self.found.get((model.name, method.name, column.task), {})
        return [
            Figure(name, _scores(outcomes, name, column)) for name in column.sets(self.protocol)
        ]

    def body(self) -> list[tuple[str, ...]]:
        """All cells, with a row of headings."""
        columns = self.columns()
        rows = [("model", "method", *(column.name for column in columns))]
        for model, method in self.rows():
            paper = self.table.figures.get((model.name, method.name), {})
            cells = [
                _cell(self.figures(model, method, column), paper.get(column.name))
                for column in columns
            ]
            rows.append((model.label, method.label, *cells))
        for label, paper in self.table.only.items():
            rows.append((label, NOTHING, *(_cell([], paper.get(c.name)) for c in columns)))
        return rows

    def caption(self) -> str:
        """What the table is, in one line."""
        protocol = f"the sets of the {self.protocol} protocol"
        return f"{self.table.title}; mean ± standard deviation over seeds, {protocol}"

    def all_notes(self) -> list[str]:
        """The lines under the table."""
        return [*self.table.notes, *self.notes]

    def text(self) -> str:
        """The table for a terminal."""
        return "\n\n".join((self.caption(), aligned(self.body()), "\n".join(self.all_notes())))

    def markdown(self) -> str:
        """The table in Markdown."""
        head, *rows = self.body()
        lines = [head, ("---",) * len(head), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        notes = "\n".join(f"- {note}" for note in self.all_notes())
        marked = f"{table}\n\n{notes}".replace("*", "\\*").replace("#", "\\#")
        return f"{self.caption()}\n\n{marked}\n"

    def latex(self) -> str:
        """The table as a LaTeX environment `table`, which needs no package."""
        head, *rows = ([_tex(cell) for cell in row] for row in self.body())
        lines = [
            "\\begin{table}",
            f"\\caption{{{_tex(self.caption())}}}",
            f"\\begin{{tabular}}{{ll{'c' * (len(head) - 2)}}}",
            "\\hline",
            " & ".join(head) + " \\\\",
            "\\hline",
            *(" & ".join(row) + " \\\\" for row in rows),
            "\\hline",
            "\\end{tabular}",
            *(f"\\par {_tex(note)}" for note in self.all_notes()),
            "\\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """One line per row and set, with plain numbers in per cent, and the paper's own figure."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("model", "method", "column", "set", "seeds", "mean", "sd", "paper"))
        for model, method in self.rows():
            paper = self.table.figures.get((model.name, method.name), {})
            for column in self.columns():
                writer.writerows(
                    (model.name, method.name, column.name, *numbers)
                    for numbers in _numbers(
                        self.figures(model, method, column), paper.get(column.name, "")
                    )
                )
        for label, paper in self.table.only.items():
            shown = {column.name for column in self.columns()} & paper.keys()
            writer.writerows((label, "", c, *[""] * 4, paper[c]) for c in paper if c in shown)
        return stream.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Writes the table in all forms, and returns the paths."""
        name = f"{self.table.name}-{self.protocol}"
        forms = {"txt": self.text() + "\n", "md": self.markdown(), "tex": self.latex()}
        forms["csv"] = self.csv()
        paths = [folder / f"{name}.{ending}" for ending in forms]
        for path, content in zip(paths, forms.values(), strict=True):
            write(path, content)
        return paths


def _scores(outcomes: Mapping[int, Outcome], name: str, column: Column) -> list[float]:
    """The scores of the seeds that have one, in the order of the seeds."""
    sets = [outcomes[seed].sets[name] for seed in sorted(outcomes) if name in outcomes[seed].sets]
    if column.score == "accuracy":
        return [one.accuracy for one in sets]
    return [one.more[column.score] for one in sets if column.score in one.more]


def _cell(figures: Sequence[Figure], paper: str | None) -> str:
    """Our figures, and the paper's in parentheses; a dash if there is neither."""
    there = any(figure.scores for figure in figures)
    ours = " / ".join(figure.text for figure in figures) if there else NOTHING
    return ours if paper is None else f"{ours} (paper {paper})"


def _numbers(figures: list[Figure], paper: str) -> Iterator[tuple[str, ...]]:
    """Set, seeds, mean, standard deviation and the paper's figure, a line per set."""
    parts = paper.split("/") if len(figures) > 1 and paper else [paper] * len(figures)
    for figure, part in zip(figures, parts, strict=True):
        scores = figure.scores
        middle = f"{100 * mean(scores):.4f}" if scores else ""
        deviation = f"{100 * figure.deviation:.4f}" if len(scores) > 1 else ""
        yield figure.set, str(len(scores)), middle, deviation, part.replace(NOTHING, "")


def _tex(text: str) -> str:
    """The text with the characters that LaTeX reads otherwise replaced by its names for them."""
    return text.translate(_TEX)
