"""The comparisons that rebuild a table: one for each model and task, all in one storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from masktuning.config.installed import version_of
from masktuning.experiments.papers.spec import Model, PaperTable, TableMethod
from masktuning.experiments.plan import Variant
from masktuning.experiments.request import ComparisonRequest

PLAIN = "finetuning"
SEARCH_SEEDS = 1
SKLEARN = "scikit-learn"


@dataclass(frozen=True)
class Wanted:
    """What the command was asked for, apart from the table."""

    flags: list[str]
    """Words of `masktuning.train` that every run gets."""
    preset: str | None
    """The preset of the tasks."""
    seeds: int
    output_dir: Path
    storage: str | None
    jobs: int
    keep: str
    retry_failed: bool
    embedded: Path
    """The checkpoint of generated tasks."""

    @property
    def given(self) -> set[str]:
        """The names of the flags of `masktuning.train` that were given."""
        return {
            word.partition("=")[0].removeprefix("--")
            for word in self.flags
            if word.startswith("--")
        }

    @property
    def shared_storage(self) -> str:
        """The storage of all comparisons of the table."""
        return self.storage or f"sqlite:///{self.output_dir / 'study.db'}"


@dataclass(frozen=True)
class Part:
    """One comparison of a table: the methods that are trained from one model on one task."""

    model: Model
    task: str
    methods: list[TableMethod]
    request: ComparisonRequest

    @property
    def where(self) -> str:
        """The model and the task, as messages name them."""
        return f"{self.model.label} on {self.task}"


def parts(table: PaperTable, wanted: Wanted) -> Iterator[Part]:
    """The comparisons of a table, in the order of its models and columns."""
    grid = {name: values for name, values in table.grid.items() if name not in wanted.given}
    for model in table.models:
        for task in dict.fromkeys(column.task for column in table.columns):
            methods = [
                method
                for method in table.methods
                if task in table.tasks(model, method) and not lacking(method, wanted)
            ]
            if not methods:
                continue
            study = f"{table.name}-{model.name.rpartition('/')[2]}-{task}"
            names = [method.variant.name for method in methods]
            request = ComparisonRequest(
                flags=flags_of(model, task, wanted),
                variants=tuple(method.variant for method in methods),
                grid=grid,
                seeds=wanted.seeds,
                search_seeds=SEARCH_SEEDS,
                output_dir=wanted.output_dir / study,
                embedded=wanted.embedded,
                storage=wanted.shared_storage,
                study=study,
                jobs=wanted.jobs,
                keep=wanted.keep,
                baseline=PLAIN if PLAIN in names else names[0],
                retry_failed=wanted.retry_failed,
            )
            yield Part(model, task, methods, request)


def flags_of(model: Model, task: str, wanted: Wanted) -> list[str]:
    """The words of `masktuning.train` that all runs of a comparison have."""
    words = ["--task", task]
    if model.shape:  # the demo's model comes with its tasks
        words += ["--model_name_or_path", str(model.checkpoint(task))]
    if wanted.preset:
        words += ["--preset", wanted.preset]
    return [*words, *wanted.flags]


def words_of(variant: Variant) -> list[str]:
    """The words of `masktuning.train` that name a method and its options."""
    options = [word for name, value in variant.options for word in (f"--{name}", value)]
    return ["--method", variant.method, *options]


def lacking(method: TableMethod, wanted: Wanted) -> list[str]:
    """What a method needs and is not there: flags that were not given, and scikit-learn."""
    flags = [name for name in method.needs if name != SKLEARN and name not in wanted.given]
    missing = SKLEARN in method.needs and version_of(SKLEARN) == "not installed"
    return [f"--{name}" for name in flags] + [SKLEARN] * missing


def notes(table: PaperTable, wanted: Wanted) -> list[str]:
    """A line for each row that cannot be trained, with the reason."""
    found = []
    for method in table.methods:
        if missing := lacking(method, wanted):
            found.append(f"{method.label} is not trained without {' and '.join(missing)}.")
    labels = {model.name: model.label for model in table.models}
    methods = {method.name: method.label for method in table.methods}
    for (model, name), reason in table.cannot.items():
        if model in labels and name in methods:
            found.append(f"{methods[name]} cannot train {labels[model]}: {reason}.")
    return found
