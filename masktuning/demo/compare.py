"""Runs several training jobs one after the other and prints their results as one table.

The demo compares its methods this way; any number of jobs on the same task will do.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from accelerate import PartialState

from masktuning.config.errors import UsageError
from masktuning.demo.jobs import DEBIASING
from masktuning.demo.progress import ProgressLine, no_bars
from masktuning.demo.recorded import recorded_text
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.tables import comparison_table
from masktuning.training import run_folder
from masktuning.training.build import load_inputs
from masktuning.training.job import TrainingJob
from masktuning.training.perturbation_log import FILE
from masktuning.training.run import check_folder, run
from masktuning.training.time_log import from_metrics

CAUTION = (
    "One run per method proves nothing about which method is better: the difference varies with "
    "the seed, the number of threads and the machine."
)
_SHOWN = 3


def compare(jobs: list[TrainingJob]) -> None:
    """Trains every job into its own folder, then prints a table and some perturbed texts.

    Raises:
        UsageError: if a folder, the data or a model of any job cannot be used; this is checked
            for all jobs before anything is trained or removed.
    """
    _settle_resuming(jobs)
    _check_folders(jobs)
    if jobs[0].training.process_index == 0:
        _introduce(jobs)
    with no_bars():
        _load_inputs(jobs)
        # Every process must have checked the folders before the first one clears them.
        PartialState().wait_for_everyone()
        _clear_folders(jobs)
        results = _run_all(jobs)
    if all(results.values()):  # processes other than the first return no results
        _print_results(jobs, results)


def _introduce(jobs: list[TrainingJob]) -> None:
    """Three lines: what will be shown, why, and how long it takes."""
    task = jobs[0].task
    methods = [job.training.method for job in jobs]
    print(
        f"What: the same small model is trained with {_listed(methods)}. "
        f"{task.name}: {task.description}."
    )
    if task.generated:
        why = (
            "Why: a model may learn this shortcut in place of the task. The shortcut works on dev "
            "and misleads on ood_adversarial, which tells the two apart."
        )
        if made_against := [method for method in methods if method in DEBIASING]:
            why += f" Methods made against such shortcuts: {_listed(made_against)}."
        print(why)
        print("Time: a minute or two on two idle cores, without network.\n", flush=True)


def _listed(words: list[str]) -> str:
    """Words as one phrase: "a", "a and b", "a, b and c"."""
    *before, last = words
    return f"{', '.join(before)} and {last}" if before else last


def _settle_resuming(jobs: list[TrainingJob]) -> None:
    """Decides which jobs --resume_from_checkpoint resumes and which ones it starts again.

    A comparison that was stopped has jobs that are complete, stopped, or not yet begun. If any of
    them has a checkpoint, those without one are started from the beginning.

    Raises:
        UsageError: if the flag names one checkpoint, which cannot be that of every job.
    """
    resuming = [job for job in jobs if job.training.resume_from_checkpoint is not None]
    for job in resuming:
        checkpoint = str(job.training.resume_from_checkpoint)
        if not run_folder.is_newest(checkpoint):
            raise UsageError(
                f"--resume_from_checkpoint {checkpoint}: there are {len(jobs)} runs to resume; "
                "give the flag without a value, or --method to resume one run"
            )
    folders = [job.folder for job in resuming]
    found = [run_folder.last_checkpoint(folder) is not None for folder in folders]
    for job, has_checkpoint in zip(resuming, found, strict=True):
        if any(found) and not has_checkpoint:
            job.training.resume_from_checkpoint, job.run.overwrite = None, True


def _check_folders(jobs: list[TrainingJob]) -> None:
    for job in jobs:
        job.check_processes()
    for job in jobs:
        check_folder(job)


def _load_inputs(jobs: list[TrainingJob]) -> None:
    """Loads the data and the model of every job, for its run; jobs with the same data share it."""
    for i, job in enumerate(jobs):
        same = [one for one in jobs[:i] if (one.task, one.data) == (job.task, job.data)]
        job.loaded.append(load_inputs(job, same[0].loaded[0].texts if same else None))


def _clear_folders(jobs: list[TrainingJob]) -> None:
    """Removes the earlier results of all jobs that start from the beginning.

    Otherwise a comparison that is stopped during its first job and resumed would take the earlier
    results of the later jobs for its own.
    """
    for job in jobs:
        if job.training.resume_from_checkpoint is None and job.training.process_index == 0:
            run_folder.clear(job.folder)


def _run_all(jobs: list[TrainingJob]) -> dict[str, list[SetResult]]:
    """The results of every job by its name, in order."""
    results = {}
    for i, (name, job) in enumerate(zip(_names(jobs), jobs, strict=True), 1):
        line = ProgressLine(f"{i} of {len(jobs)}: {job.training.method}")
        results[name] = [one.result for one in run(job, summary=False, progress=line)]
    return results


def _print_results(jobs: list[TrainingJob], results: dict[str, list[SetResult]]) -> None:
    print(f"\n{jobs[0].task.name}: accuracy in per cent\n")
    metrics = {
        name: run_folder.read_results(job.folder) for name, job in zip(results, jobs, strict=True)
    }
    seconds = {name: sum(from_metrics(found).values()) for name, found in metrics.items()}
    print(comparison_table(results, {"time": {k: f"{v:.1f} s" for k, v in seconds.items()}}))
    for name, job in zip(results, jobs, strict=True):
        path = job.folder / FILE
        if path.is_file():
            print(
                f"\nTraining texts with the words that {name} substituted, as [before -> after]:\n"
            )
            print("\n".join(marked_examples(path)) or "  no word was changed in the logged texts")
    folders = [f"{job.folder} ({job.training.method})" for job in jobs]
    print(f"\nclassifiers, config.yaml, all_results.json and README.md: {', '.join(folders)}")
    if len({job.training.method for job in jobs}) == len(jobs):
        print(f"\n{recorded_text(jobs[0].task.name) or CAUTION}")


def marked_examples(path: Path) -> list[str]:
    """At most three changed texts of a perturbation log, latest epochs first, one line each.

    Changes are marked as [before -> after].
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    changed = [record for record in records if record["changes"]]
    changed.sort(key=lambda record: -record["epoch"])  # stable: the log's order within an epoch
    return [f"  epoch {r['epoch'] + 1}: {r['marked']}" for r in changed[:_SHOWN]]


def _names(jobs: list[TrainingJob]) -> list[str]:
    """A name per job for the table: its method, or its folder if several jobs have that method."""
    count = Counter(job.training.method for job in jobs)
    return [
        job.training.method if count[job.training.method] == 1 else str(job.folder) for job in jobs
    ]
