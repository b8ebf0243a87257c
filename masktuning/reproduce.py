"""Rebuild the tables of two papers, with the paper's figures next to those of runs of our own.

The table of ablations in small, in a few minutes, offline:

    python -m masktuning.reproduce --table 3 --preset demo

What the main table would take, and the table itself, or a part of it:

    python -m masktuning.reproduce --table 1 --dry_run
    python -m masktuning.reproduce --table 1 --data_dir DATA --output_dir tables
    python -m masktuning.reproduce --table 1 --models roberta-base --tasks sst2 --data_dir DATA

The sets that agree with the paper's figures, from the same runs:

    python -m masktuning.reproduce --table 1 --data_dir DATA --output_dir tables \\
        --protocol paper-like

Tables 1, 2 and 3 are those of Mask-tuning (arXiv 2307.10457), l3masking is that of L3Masking
(CustomNLP4U 2024). Each pair of a model and a task is a comparison of methods as by
`masktuning.compare`, and all of them share one storage, from which several machines may take their
runs. A command that was stopped goes on when it is given again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from masktuning.config.errors import UsageError, check_names
from masktuning.config.files import make
from masktuning.config.imports import heavy_imports
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import build_parser, known_names, run_command, underscored, wants_help
from masktuning.demo import EMBEDDED
from masktuning.experiments.papers.small import in_small
from masktuning.experiments.papers.spec import PaperTable, load_table

PROGRAM = "python -m masktuning.reproduce"
EXAMPLES = "Table II of Mask-tuning (arXiv 2307.10457): training texts as perturbed in each epoch"
TABLES = ("1", "2", "3", "l3masking")
EPILOG = """\
Every other flag is one of `masktuning.train`, and all runs get it: --max_train_samples --bf16
--num_train_epochs --treebank ... One that the table searches, such as --learning_rate, is then not
searched.
"""
_OF_THE_TABLE = {
    "task": "--tasks",
    "task_name": "--tasks",
    "method": "--methods",
    "model_name_or_path": "--models",
    "seed": "--seeds",
    "config": "flags",
}
"""Flags of `masktuning.train` that the table sets, with what to give in their place."""


@dataclass
class ReproduceArguments:
    """Which table to rebuild, and how."""

    _argument_group_name = "reproduction"

    table: str | None = field(
        default=None, metadata={"help": "The table to rebuild.", "choices": [*TABLES]}
    )
    models: list[str] = field(
        default_factory=list, metadata={"help": "Only these of the table's models."}
    )
    methods: list[str] = field(
        default_factory=list, metadata={"help": "Only these of the table's methods."}
    )
    tasks: list[str] = field(
        default_factory=list, metadata={"help": "Only the columns of these tasks."}
    )
    seeds: int | None = field(
        default=None,
        metadata={
            "help": "Runs of each method, with seeds 1, 2, ...; by default as many as in the "
            "paper (5, and 3 for l3masking), and 2 with --preset demo."
        },
    )
    preset: str = field(
        default="paper",
        metadata={
            "help": "paper: its models, tasks and settings; demo: the embedded model and "
            "generated tasks in their place.",
            "choices": ["paper", "demo"],
        },
    )
    protocol: str = field(
        default="standard",
        metadata={
            "help": "The sets to show: those of the literature, or those that agree with the "
            "paper's figures. The runs are the same.",
            "choices": ["standard", "paper-like"],
        },
    )
    data_dir: str | None = field(
        default=None,
        metadata={"help": "The folder of the tasks' files; files that it lacks come from the hub."},
    )
    output_dir: str = field(
        default="tables", metadata={"help": "Folder for the tables and the runs."}
    )
    storage: str | None = field(
        default=None,
        metadata={"help": "As in masktuning.compare; by default study.db in --output_dir."},
    )
    jobs: int = field(default=1, metadata={"help": "Runs at the same time on this machine."})
    keep: str = field(
        default="best",
        metadata={
            "help": "Whose weights to keep: the best run of each method, or all runs.",
            "choices": ["best", "all"],
        },
    )
    retry_failed: bool = field(default=False, metadata={"help": "Run again what failed before."})
    dry_run: bool = field(
        default=False,
        metadata={"help": "Show the rows with their runs and an estimate of the time, and stop."},
    )

    def __post_init__(self) -> None:
        for name in ("seeds", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}: give 1 or more")


def main(argv: list[str]) -> None:
    """Rebuilds the table that the flags name; see the top of this file."""
    parser = build_parser(PROGRAM, __doc__ or "", [ReproduceArguments], EPILOG)
    if wants_help(argv):
        parser.print_help()
        return
    try:
        arguments, rest = parser.parse_args_into_dataclasses(
            underscored(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:  # of the dataclass, which checks its values
        raise UsageError(str(error)) from None
    if rest and not rest[0].startswith("--"):
        raise UsageError(f"unexpected argument {rest[0]!r}")
    if arguments.table is None:
        raise UsageError(f"--table is missing: one of {', '.join(TABLES)}")
    table = _table(arguments)
    with heavy_imports():
        _check_flags(rest, known_names(parser))
        from masktuning.experiments.papers.estimate import dry_run
        from masktuning.experiments.papers.examples import rebuild_examples
        from masktuning.experiments.papers.rebuild import rebuild
        from masktuning.experiments.papers.requests import Wanted

    wanted = Wanted(
        flags=[*(["--data_dir", arguments.data_dir] if arguments.data_dir else []), *rest],
        preset=None if arguments.preset == "demo" else arguments.preset,
        seeds=arguments.seeds or table.seeds,
        output_dir=Path(arguments.output_dir),
        storage=arguments.storage,
        jobs=arguments.jobs,
        keep=arguments.keep,
        retry_failed=arguments.retry_failed,
        embedded=EMBEDDED,
    )
    if arguments.dry_run:
        print(dry_run(table, wanted))
        return
    make(wanted.output_dir)
    if arguments.table == "2":
        print(rebuild_examples(table, wanted))
    else:
        text, any_run = rebuild(table, wanted, arguments.protocol)
        print(text)
        if not any_run:
            sys.exit(1)


def _table(arguments: ReproduceArguments) -> PaperTable:
    """The rows and columns that the flags ask for.

    Raises:
        UsageError: for a name that the table does not have, or flags that leave no row.
    """
    if arguments.table == "2":
        return _examples_table(arguments)
    table = load_table("l3masking" if arguments.table == "l3masking" else f"table{arguments.table}")
    if arguments.preset == "demo":
        table = in_small(table)
    table = table.select(arguments.models, arguments.methods, arguments.tasks)
    rows = (table.tasks(model, method) for model in table.models for method in table.methods)
    if not any(rows):
        raise UsageError("the table trains none of these models with these methods on these tasks")
    return table


def _examples_table(arguments: ReproduceArguments) -> PaperTable:
    """Table II as a part of Table I: one run of Mask-tuning, by default of BERT on SST-2."""
    if arguments.methods or (arguments.seeds or 1) > 1:
        raise UsageError(
            "--table 2 shows texts of one run of Mask-tuning: leave out --methods and --seeds"
        )
    table = load_table("table1")
    if arguments.preset == "demo":
        table = in_small(table)
    table = table.select(arguments.models, ["mask_tuning"], arguments.tasks)
    table = table.select([table.models[0].name], [], [table.columns[0].task])
    return replace(table, name=table.name.replace("1", "2"), title=EXAMPLES, grid={}, seeds=1)


def _check_flags(words: list[str], own: set[str]) -> None:
    """Raises UsageError for a flag that no run has, or that the table sets."""
    from masktuning.methods import options_by_method
    from masktuning.training.arguments import MaskTuningArguments

    groups = (ModelArguments, DataArguments, MaskTuningArguments, RunArguments)
    known = {f.name for group in groups for f in fields(group) if f.init}
    known |= {"overwrite_output_dir", *_OF_THE_TABLE}
    for options in options_by_method().values():
        known |= options
    given = [word.partition("=")[0][2:] for word in words if word.startswith("--")]
    check_names(given, own | known, "flag")
    for name in given:
        if name in _OF_THE_TABLE:
            raise UsageError(f"--{name} is set by the table: give {_OF_THE_TABLE[name]}")


if __name__ == "__main__":
    run_command(main)
