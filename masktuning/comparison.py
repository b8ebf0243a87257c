"""What the demo is for: plain fine-tuning and Mask-tuning, in and out of distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from masktuning.perturbations import FILE
from masktuning.report import comparison_table
from masktuning.training_run import run

if TYPE_CHECKING:
    from masktuning.train import Options

_SHOWN = 3


def compare(runs: list[Options]) -> None:
    """Trains each, then prints one table and some of what the masked LM put in.

    Raises:
        UsageError: as `run`.
    """
    results = {options.training.method: run(options, summary=False) for options in runs}
    if not all(results.values()):
        return  # not the process that measures
    print(f"\n{runs[0].task.name}: accuracy in per cent\n")
    print(comparison_table(results))
    for options in runs:
        folder = Path(str(options.training.output_dir))
        if (folder / FILE).is_file():
            print("\nWhat Mask-tuning classified in place of training texts, in the last epoch:\n")
            print("\n".join(marked_examples(folder / FILE)))
    folders = [f"{options.training.output_dir} ({options.training.method})" for options in runs]
    print(f"\nclassifiers, config.yaml, all_results.json and README.md: {', '.join(folders)}")


def marked_examples(path: Path) -> list[str]:
    """The last epoch's first texts that changed, the changes as [before -> after]."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = max((record["epoch"] for record in records), default=0)
    changed = [r["marked"] for r in records if r["epoch"] == last and r["changes"]]
    return [f"  {text}" for text in changed[:_SHOWN]]
