"""Compare training methods on a task or on your own files: accuracy, robustness and cost.

    python -m masktuning.compare --methods finetuning mask_tuning bias_product --seeds 3

Your own files, with an out-of-domain set of your own:

    python -m masktuning.compare --methods finetuning mask_tuning hiddencut --seeds 5 \\
        --train_file train.csv --validation_file dev.csv --eval_files reviews=reviews.csv \\
        --model_name_or_path roberta-base --output_dir comparison

Write options of a method after its name, and options to search in --grid. Each method searches
those that it has, and its best options are chosen by in-distribution accuracy alone:

    python -m masktuning.compare --task sst2 --model_name_or_path roberta-base --data_dir DATA \\
        --methods finetuning mask_tuning mask_tuning:alpha=0.3 mask_tuning:gate=label \\
        --grid learning_rate=2e-5,5e-5 --search_seeds 2 --seeds 5 --output_dir comparison

Several machines share the runs when each is given the same command with the same storage:

    python -m masktuning.compare ... --storage postgresql://user@host/studies

Every other flag is one of masktuning.train and holds for all runs. A comparison that was stopped
goes on when the same command is given again. --dry_run shows the plan and how long it takes.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.imports import heavy_imports
from masktuning.config.installed import import_datasets
from masktuning.config.parser import FlagParser, run_command, underscored, wants_help
from masktuning.demo import EMBEDDED
from masktuning.methods import names
from masktuning.tasks import names as task_names

PROGRAM = "python -m masktuning.compare"


def main(argv: list[str]) -> None:
    """Compares what the flags say; see the top of this file."""
    parser = _parser()
    if wants_help(argv):
        parser.print_help()
        print(f"\nMethods: {', '.join(names())}.\nTasks: {', '.join(task_names())}.")
        return
    arguments, flags = parser.parse_known_args(underscored(argv))
    if arguments.methods is None:
        raise UsageError("--methods is missing: which methods? for example finetuning mask_tuning")
    if (arguments.search == "tpe") != (arguments.trials is not None):
        raise UsageError("--search tpe and --trials N go together: how many points to try")
    with heavy_imports():
        import_datasets()
        from masktuning.experiments.comparison import compare
        from masktuning.experiments.report import write_report

    request = _request(arguments, flags)
    if arguments.dry_run:
        from masktuning.experiments.dry_run import dry_run

        print(dry_run(request))
        return
    try:
        found = compare(request, bar=arguments.disable_tqdm == "false")
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    print(write_report(found, request.folder_of(found.task)))
    if not any(found.outcomes.values()):
        sys.exit(1)


def _parser() -> FlagParser:
    parser = FlagParser(PROGRAM, __doc__ or "")
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="Show this.")
    add("--methods", nargs="+", help="Methods, each perhaps as METHOD:option=value,option=value.")
    add("--seeds", type=int, default=3, help="How many seeds each method is reported with.")
    add("--grid", nargs="+", default=[], help="Options to search, as option=value,value.")
    add(
        "--search",
        choices=["grid", "tpe"],
        default="grid",
        help="Try all combinations of --grid, or as many points as --trials says, which Optuna's "
        "TPE proposes; then --grid may have ranges, as learning_rate=1e-5..1e-4.",
    )
    add("--trials", type=int, help="How many points --search tpe tries with each method.")
    add("--search_seeds", type=int, default=1, help="How many other seeds search each point.")
    add("--baseline", help="The method that others are compared with; the first one by default.")
    add("--output_dir", help="Folder of the runs and tables; by default comparison-TASK.")
    add("--storage", help="A database URL, or a path that ends in .journal; SQLite by default.")
    add("--study", help="The name of the study in the storage; by default that of the task.")
    add("--jobs", type=int, default=1, help="How many runs go on at a time on this machine.")
    add(
        "--keep",
        choices=["best", "all"],
        default="best",
        help="Keep the weights of each method's best run on the in-distribution set, or all.",
    )
    add("--retry_failed", action="store_true", help="Run the failed runs once more.")
    add("--dry_run", action="store_true", help="Show the plan and its cost, and train nothing.")
    add(
        "--disable_tqdm",
        nargs="?",
        const="true",
        default="false",
        choices=["true", "false"],
        help="Show no progress bar.",
    )
    return parser


def _request(arguments: Namespace, flags: list[str]) -> Any:
    from masktuning.experiments.plan import Variant
    from masktuning.experiments.request import ComparisonRequest

    return ComparisonRequest(
        flags=flags,
        variants=tuple(map(Variant.parse, arguments.methods)),
        grid=dict(map(_searched, arguments.grid)),
        output_dir=None if arguments.output_dir is None else Path(arguments.output_dir),
        embedded=EMBEDDED,
        seeds=arguments.seeds,
        search_seeds=arguments.search_seeds,
        trials=arguments.trials,
        storage=arguments.storage,
        study=arguments.study,
        jobs=arguments.jobs,
        keep=arguments.keep,
        baseline=arguments.baseline and Variant.parse(arguments.baseline).name,
        retry_failed=arguments.retry_failed,
    )


def _searched(text: str) -> tuple[str, tuple[str, ...]]:
    """An option of --grid and its values."""
    name, _, values = text.partition("=")
    found = tuple(value for value in values.split(",") if value)
    if not name or not found:
        raise UsageError(f"--grid {text}: write option=value,value")
    return name.removeprefix("--").replace("-", "_"), found


if __name__ == "__main__":
    run_command(main)
