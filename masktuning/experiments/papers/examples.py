"""Table II of Mask-tuning: what it made of three training texts in three epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.files import write
from masktuning.evaluation.tables import aligned
from masktuning.experiments.outcome import Outcome
from masktuning.experiments.papers.rebuild import run_part
from masktuning.experiments.papers.requests import Wanted, parts
from masktuning.experiments.papers.spec import PaperTable
from masktuning.experiments.worker_id import machine
from masktuning.training.perturbation_log import FILE

NOTES = (
    "The paper's table is one of examples and not of results: three training texts with the masked "
    "and the predicted word of each epoch. These are the first three training texts of a run of "
    "our own, as its model perturbed them at the end of each epoch, without dropout: "
    "[before -> after]. A text whose masked tokens were all predicted as they were is shown "
    "without a mark. The paper masks words, and Mask-tuning here the tokens of the vocabulary."
)
_TEXTS = 3


def rebuild_examples(table: PaperTable, wanted: Wanted) -> str:
    """The examples as text, after the run that they come from; they are written to a file as well.

    Args:
        table: one model, Mask-tuning and one task.
        wanted: with one seed.

    Raises:
        UsageError: if the run failed, or was made on another machine.
    """
    (part,) = parts(table, wanted)
    comparison = run_part(part)
    outcomes = [*comparison.outcomes.get(part.methods[0].variant.name, {}).values()]
    if not outcomes:
        reason = next(iter(comparison.failures.values()), "it has not ended yet")
        raise UsageError(f"the run of table 2 has no result: {reason}")
    rows = examples(read_log(outcomes[0]))
    text = "\n\n".join(
        (f"{table.title}; {part.where}", aligned([("text", "epoch", "perturbed"), *rows]), NOTES)
    )
    path = wanted.output_dir / f"{table.name}.txt"
    write(path, text + "\n")
    return f"\n{text}\n\nwritten: {path}"


def read_log(outcome: Outcome) -> list[dict[str, Any]]:
    """The perturbed texts that a run wrote down.

    Raises:
        UsageError: if they are not on this machine.
    """
    path = Path(outcome.folder) / FILE
    if not path.is_file():
        here = "this machine" if outcome.machine == machine() else outcome.machine
        raise UsageError(
            f"{path} on {here} has the perturbed texts of the run and is not here: give another "
            "--output_dir to run it again"
        )
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def examples(records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of the first texts of the log, each with a line per epoch."""
    texts = list(dict.fromkeys(record["example_id"] for record in records))[:_TEXTS]
    return [
        (str(number), str(record["epoch"] + 1), record["marked"])
        for number, text in enumerate(texts, 1)
        for record in records
        if record["example_id"] == text
    ]
