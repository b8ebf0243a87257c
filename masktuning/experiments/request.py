"""What a comparison was asked for, and the checks that come before any run."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

from masktuning.config.errors import UsageError, check_names
from masktuning.config.option_file import read_options
from masktuning.config.options import DataArguments, ModelArguments
from masktuning.experiments.plan import (
    FIRST_SEARCH_SEED,
    Plan,
    Point,
    Variant,
    grid_points,
    open_options,
)
from masktuning.experiments.proposals import Space, ends, is_range
from masktuning.methods import method_class, options_by_method
from masktuning.training.job import TrainingJob, read_job, task_settings

# Options of train that a comparison decides itself, with what to give instead.
_REFUSED = {
    "method": "give --methods",
    "seed": "every method is run with the seeds 1, 2, ...: give how many as --seeds",
    "data_seed": "every method is run with the seeds 1, 2, ...: give how many as --seeds",
    "output_dir": "give it once, for all runs",
    "resume_from_checkpoint": "leave it out: the same command goes on with a comparison",
    "overwrite": "give another --output_dir or another --study",
    "overwrite_output_dir": "give another --output_dir or another --study",
    "push_to_hub": "upload the run that you choose, with the hub's own command",
    "do_train": "a comparison trains; `evaluate` measures classifiers that are there",
    "do_eval": "a comparison measures every run",
    "do_predict": "`predict` labels new texts with a classifier of the comparison",
    "test_file": "`predict` labels new texts with a classifier of the comparison",
}
# What the config.yaml of a run may hold too. Cells have their own; `_check_variant` sees the rest.
_OF_A_RUN = {"method", "seed", "output_dir", "do_train", "do_eval"}
# Options that say when a run saves and evaluates; without them it does so at its end only.
_SAVING = {
    *("save_strategy", "save_steps", "eval_strategy", "eval_steps"),
    *("load_best_model_at_end", "early_stopping_patience", "eval_ood"),
}
_AT_THE_END = ("--save_strategy", "no", "--eval_strategy", "no")


@dataclass(frozen=True)
class ComparisonRequest:
    """What to compare, and where the runs are kept."""

    flags: list[str]
    """The words of `masktuning.train` that every run has."""
    variants: tuple[Variant, ...]
    grid: dict[str, tuple[str, ...]]
    """The values of each option that is searched, or a range `low..high`."""
    embedded: Path
    """The checkpoint of generated tasks."""
    output_dir: Path | None = None
    """The folder of the runs and the report; by default comparison-STUDY."""
    seeds: int = 3
    search_seeds: int = 1
    trials: int | None = None
    """How many grid points are proposed for each variant; None for all combinations."""
    storage: str | None = None
    """The URL of the study's storage; by default an SQLite file in `output_dir`."""
    study: str | None = None
    """The name of the study; by default that of the task."""
    jobs: int = 1
    keep: str = "best"
    """Whose weights are kept: of the best run of each variant, or of all runs."""
    baseline: str | None = None
    """The name of the variant that others are compared with; the first one by default."""
    retry_failed: bool = False

    def study_of(self, task: str) -> str:
        """The name of the study of a task."""
        return self.study or Path(task).stem.replace(" ", "_")

    def folder_of(self, task: str) -> Path:
        """The folder of the runs and the report of a task."""
        return self.output_dir or Path(f"comparison-{self.study_of(task)}")

    def url_of(self, task: str) -> str:
        """The URL of the storage of a task's study."""
        return self.storage or f"sqlite:///{self.folder_of(task) / 'study.db'}"

    def words(self, variant: Variant, point: Point = ()) -> list[str]:
        """The words of the command line of a variant with a grid point."""
        words = [*self.flags, "--method", variant.method]
        for name, value in (*variant.options, *point):
            words += [f"--{name}", *value.split()]
        given = self.given() | {name for name, _ in (*variant.options, *point)}
        if not (given | task_settings(self.flags, variant.method).keys()) & _SAVING:
            words += _AT_THE_END
        return words if "report_to" in given else [*words, "--report_to", "none"]

    def given(self) -> set[str]:
        """The names of the options that flags and the YAML file of options give."""
        names = {word.partition("=")[0][2:] for word in self.flags if word.startswith("--")}
        for one, value in pairwise([*self.flags, ""]):
            if one == "--config" or one.startswith("--config="):
                names |= read_options(one.partition("=")[2] or value).keys()
        return names


def check(request: ComparisonRequest) -> dict[str, TrainingJob]:
    """One job of every variant, by its name, after its flags and its grid points were read.

    Raises:
        UsageError: for anything that no run could begin with.
    """
    names = [variant.name for variant in request.variants]
    if len(set(names)) < len(names):
        raise UsageError(f"--methods: {max(names, key=names.count)} is there twice")
    if request.baseline is not None:
        check_names([request.baseline], set(names), "--baseline")
    for option in ("seeds", "search_seeds", "jobs", "trials"):
        value = getattr(request, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option} is {value}: give 1 or more")
    flags = {word.partition("=")[0].removeprefix("--") for word in request.flags}
    options = {name for variant in request.variants for name, _ in variant.options}
    in_file = request.given() - flags - _OF_A_RUN
    for name in sorted((flags | options | in_file | request.grid.keys()) & _REFUSED.keys()):
        raise UsageError(f"--{name} is not for a comparison: {_REFUSED[name]}")
    for variant in request.variants:
        method_class(variant.method)  # an unknown one is named before anything else
    _check_grid(request)
    return {variant.name: _check_variant(request, variant) for variant in request.variants}


def plan_of(request: ComparisonRequest) -> Plan:
    """The plan of a request that was checked, before any grid point is proposed."""
    first, spaces = FIRST_SEARCH_SEED, spaces_of(request)
    grids = {
        one.name: tuple(grid_points(request.grid, one, options_of(one.method)))
        if one.name not in spaces
        else ()
        for one in request.variants
    }
    return Plan(
        request.variants,
        grids,
        tuple(range(first, first + request.search_seeds)),
        tuple(range(1, request.seeds + 1)),
        dict.fromkeys(spaces, request.trials or 0),
    )


def spaces_of(request: ComparisonRequest) -> dict[str, Space]:
    """What each variant's points are proposed from; empty if all combinations are run."""
    if request.trials is None:
        return {}
    found = {
        one.name: open_options(request.grid, one, options_of(one.method))
        for one in request.variants
    }
    return {name: space for name, space in found.items() if space}


def options_of(method: str) -> set[str]:
    """The names of the options that a run with a method has, but for those of its data."""
    from masktuning.training.arguments import arguments_for  # seconds of imports

    groups = (arguments_for(method), ModelArguments)
    return {field.name for group in groups for field in fields(group)}


def _check_variant(request: ComparisonRequest, variant: Variant) -> TrainingJob:
    """The job of a variant without a grid point; each value of its grid is read as well."""
    if method_class(variant.method).measures:
        raise UsageError(f"--methods {variant.name}: it trains no classifier to compare")
    has = options_of(variant.method)
    data = {field.name for field in fields(DataArguments)}
    for name, _ in variant.options:
        check_names([name], has - data, f"option of {variant.method}")
    job = read_job(request.words(variant), request.embedded, warn=False)
    training = job.training
    if not training.do_train or not training.do_eval or training.do_predict:
        raise UsageError("--config: a comparison trains and measures every run, and does no more")
    for name, values in request.grid.items():
        both = ends(name, values) if is_range(values) else values
        for value in both if name in has else ():
            read_job(request.words(variant, ((name, value),)), request.embedded, warn=False)
    return job


def _check_grid(request: ComparisonRequest) -> None:
    """Raises UsageError for a searched option that no variant has or leaves open."""
    grid, variants = request.grid, request.variants
    has = {name for one in variants for name in options_of(one.method)}
    for name in sorted(grid.keys() - has):
        owners = [method for method, options in options_by_method().items() if name in options]
        if owners:
            raise UsageError(
                f"--grid {name}: none of these methods has this option, which belongs to "
                f"{', '.join(owners)}"
            )
    check_names(grid, has, "option in --grid")
    if request.trials is None and (ranges := [name for name in grid if is_range(grid[name])]):
        raise UsageError(f"--grid {ranges[0]}: give values, or --search tpe to draw from a range")
    if request.trials is not None and not grid:
        raise UsageError("--search tpe is without effect: say what to search as --grid")
    for name in grid:
        if not any(
            name in options_of(one.method) and name not in dict(one.options) for one in variants
        ):
            raise UsageError(f"--grid {name}: --methods fixes it for every method that has it")
