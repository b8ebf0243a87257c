"""What a paper's table contains, read from its YAML file and checked; pure Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import check_names
from masktuning.experiments.plan import Variant
from masktuning.tasks.yaml_schema import Document

_FOLDER = Path(__file__).parent
STANDARD, PAPER_LIKE = "standard", "paper-like"


@dataclass(frozen=True)
class Column:
    """A column: a set of a task, or several with a slash between their figures."""

    name: str
    task: str
    standard: list[str] = field(default_factory=list)
    """The sets by the standard protocol; none if the column is not shown then."""
    paper_like: list[str] = field(default_factory=list)
    """The sets by the paper-like protocol."""
    score: str = "accuracy"
    """accuracy, or the name of a further score, such as f1."""
    extra: bool = False
    """Whether the paper has no such column."""

    def sets(self, protocol: str) -> list[str]:
        """The names of the sets that a protocol shows here."""
        return self.standard if protocol == STANDARD else self.paper_like


@dataclass(frozen=True)
class Model:
    """A pretrained model, whose name is its id on the hub unless `checkpoints` say otherwise."""

    name: str
    label: str
    shape: str = ""
    """bert, roberta or bart: the base size of that family. None for the demo's own model."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """The ids by task; the model is then trained on no other tasks."""

    def checkpoint(self, task: str) -> str | None:
        """What to start from on a task; None if the model is not trained on it."""
        return self.checkpoints.get(task) if self.checkpoints else self.name


@dataclass(frozen=True)
class TableMethod:
    """A method of the table, with what sets it apart from the method's defaults."""

    name: str
    label: str
    tasks: list[str]
    options: dict[str, str] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    """Flags without which the method cannot be trained, and scikit-learn if it needs that."""

    @property
    def variant(self) -> Variant:
        """The method as a variant of a comparison."""
        return Variant(self.name, tuple(self.options.items()))


@dataclass(frozen=True)
class _File:
    """The keys of the YAML file, with their contents still unchecked."""

    title: str
    seeds: int
    models: dict[str, Any]
    columns: dict[str, Any]
    methods: dict[str, Any]
    figures: dict[str, dict[str, str]]
    notes: list[str]
    demo: dict[str, list[str]]
    grid: dict[str, list[str]] = field(default_factory=dict)
    cannot: dict[str, dict[str, str]] = field(default_factory=dict)
    only_in_the_paper: dict[str, str] = field(default_factory=dict)
    only_note: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of a paper: every model with every method, and the paper's own figures."""

    name: str
    title: str
    seeds: int
    """How many seeds the paper reports means of."""
    models: list[Model]
    columns: list[Column]
    methods: list[TableMethod]
    figures: dict[tuple[str, str], dict[str, str]]
    """The paper's figures by model and method, and by column; what it has none for is missing."""
    only: dict[str, dict[str, str]]
    """The figures of rows that are shown and not run, by their labels."""
    notes: list[str]
    grid: dict[str, tuple[str, ...]]
    """The values of the options that are searched on dev."""
    cannot: dict[tuple[str, str], str]
    """Why a model cannot be trained with a method, by both names."""
    demo: dict[str, list[str]]
    """The generated tasks of the table in small, each with the tasks that it stands for."""

    def tasks(self, model: Model, method: TableMethod) -> list[str]:
        """The tasks that a row is trained on, in the order of the columns."""
        if (model.name, method.name) in self.cannot:
            return []
        known = dict.fromkeys(column.task for column in self.columns)
        return [one for one in known if one in method.tasks and model.checkpoint(one)]

    def select(self, models: list[str], methods: list[str], tasks: list[str]) -> PaperTable:
        """The rows and columns of some models, methods and tasks; an empty list takes all.

        Raises:
            UsageError: for a name that the table does not have, with the nearest one.
        """
        here = {column.task for column in self.columns}
        _check(models, (one.name for one in self.models), "model of this table")
        _check(methods, (one.name for one in self.methods), "method of this table")
        _check(tasks, here, "task of this table")
        return replace(
            self,
            models=[one for one in self.models if not models or one.name in models],
            methods=[one for one in self.methods if not methods or one.name in methods],
            columns=[one for one in self.columns if not tasks or one.task in tasks],
            only={} if models or methods else self.only,
        )


def load_table(name: str) -> PaperTable:
    """The table of a name, which is that of a file in this folder or the path of another one.

    Raises:
        UsageError: with the line, for a file that is not a table.
    """
    path = Path(name) if name.endswith(".yaml") else _FOLDER / f"{name}.yaml"
    document = Document(path)
    file: _File = document.fit((), document.content, _File)
    columns = _fitted(document, "columns", file.columns, Column)
    models = _fitted(document, "models", file.models, Model)
    methods = _fitted(document, "methods", file.methods, TableMethod)
    for column in columns:
        if not (column.standard or column.paper_like):
            raise document.error(("columns", column.name), f"{column.name} has no sets")
    known = {(model.name, method.name) for model in models for method in methods}
    figures = _pairs(document, "figures", file.figures, known)
    in_paper = [column.name for column in columns if not column.extra]
    return PaperTable(
        path.stem,
        file.title,
        file.seeds,
        models,
        columns,
        methods,
        {
            place: _figures(document, ("figures", *place), text, in_paper)
            for place, text in figures.items()
        },
        {
            label: _figures(document, ("only_in_the_paper", label), text, in_paper)
            for label, text in file.only_in_the_paper.items()
        },
        [*file.notes, *([file.only_note] if file.only_note else [])],
        {name: tuple(values) for name, values in file.grid.items()},
        _pairs(document, "cannot", file.cannot, known),
        file.demo,
    )


def _fitted(document: Document, key: str, content: dict[str, Any], shape: type) -> list[Any]:
    return [document.fit((key, name), one, shape, name=name) for name, one in content.items()]


def _pairs(
    document: Document,
    key: str,
    content: dict[str, dict[str, str]],
    known: set[tuple[str, str]],
) -> dict[tuple[str, str], str]:
    """Texts by model and method, from a mapping of mappings."""
    found = {(a, b): text for a, inner in content.items() for b, text in inner.items()}
    for place in found:
        if place not in known:
            raise document.error((key, *place), f"{' with '.join(place)} is no row of this table")
    return found


def _figures(
    document: Document, place: tuple[str, ...], text: str, columns: list[str]
) -> dict[str, str]:
    """The figures of a row by column, without those that are only dashes."""
    words = text.split()
    if len(words) != len(columns):
        raise document.error(place, f"{len(words)} figures for {len(columns)} columns")
    return {name: word for name, word in zip(columns, words, strict=True) if word != "-"}


def _check(given: list[str], known: Iterable[str], kind: str) -> None:
    check_names(given, set(known), kind)
