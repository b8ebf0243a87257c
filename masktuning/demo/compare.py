"""What the demo is for: plain fine-tuning and Mask-tuning, in and out of distribution."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import PartialState

from masktuning.config.errors import UsageError
from masktuning.data.load import load_texts
from masktuning.evaluation.tables import comparison_table
from masktuning.training import run_folder
from masktuning.training.build import load_model
from masktuning.training.job import TrainingJob
from masktuning.training.perturbation_log import FILE
from masktuning.training.run import check_folder, run

_SHOWN = 3


def compare(runs: list[TrainingJob]) -> None:
    """Trains each, then prints one table and some of what the masked LM put in.

    Raises:
        UsageError: as `run`, before anything is trained or removed.
    """
    for options in runs:
        if options.training.world_size > 1 and "output_dir" not in options.chosen:
            raise UsageError("give --output_dir: processes would not agree on a folder's name")
    _settle_resuming(runs)
    for options in runs:
        check_folder(options)
    last = runs[-1]
    load_texts(last.task.sets, last.task.labels, last.data.data_dir)
    load_model(last)  # Mask-tuning asks more of a checkpoint, and comes last
    PartialState().wait_for_everyone()  # all have looked at the folders before one clears them
    for options in runs:
        args = options.training
        if args.resume_from_checkpoint is None and args.process_index == 0:
            # Now, or a run resumed after a stop in the first would take the second's old results.
            run_folder.clear(Path(str(args.output_dir)))
    results = {}
    for i, options in enumerate(runs, 1):
        args = options.training
        if args.process_index == 0:
            print(f"{i} of {len(runs)}: {args.method}, into {args.output_dir}", flush=True)
        results[args.method] = run(options, summary=False)
    if not all(results.values()):
        return  # not the process that measures
    print(f"\n{runs[0].task.name}: accuracy in per cent\n")
    print(comparison_table(results))
    path = Path(str(runs[-1].training.output_dir)) / FILE
    if path.is_file():
        print("\nWhat the masked LM puts into training texts, at the end of an epoch:\n")
        print("\n".join(marked_examples(path)) or "  nothing but the words that were there")
    folders = [f"{options.training.output_dir} ({options.training.method})" for options in runs]
    print(f"\nclassifiers, config.yaml, all_results.json and README.md: {', '.join(folders)}")


def _settle_resuming(runs: list[TrainingJob]) -> None:
    """With --resume_from_checkpoint: a run that stopped before its first one begins again."""
    resume = runs[0].training.resume_from_checkpoint
    if resume is None:
        return
    if not run_folder.is_newest(resume):
        raise UsageError(
            f"--resume_from_checkpoint {resume}: there are two runs to resume; give it without a "
            "value, or --method"
        )
    folders = [Path(str(options.training.output_dir)) for options in runs]
    found = [run_folder.last_checkpoint(folder) is not None for folder in folders]
    for options, has_checkpoint in zip(runs, found, strict=True):
        if any(found) and not has_checkpoint:
            options.training.resume_from_checkpoint, options.run.overwrite = None, True


def marked_examples(path: Path) -> list[str]:
    """The first texts that changed, of the latest epochs that had any: [before -> after]."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    changed = [record for record in records if record["changes"]]
    changed.sort(key=lambda record: -record["epoch"])  # stable: within an epoch, as they come
    return [f"  epoch {r['epoch'] + 1}: {r['marked']}" for r in changed[:_SHOWN]]
