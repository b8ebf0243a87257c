"""Runs one cell of a comparison in a process of its own.

    python -m masktuning.experiments.cell < job.json

The job has `flags`, the words of `masktuning.train`; `identity`, which is kept with the outcome;
`search`, whether only the in-distribution set is measured; and `embedded`, the checkpoint of
generated tasks. The outcome is written into the run folder. The process ends as soon as its
standard input is closed, which happens when its parent ends in any way: a run without a parent
would write into a folder that another one uses by then.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json
from masktuning.config.imports import heavy_imports
from masktuning.experiments.outcome import UNION, Outcome, SetOutcome
from masktuning.experiments.worker_id import machine
from masktuning.tasks.spec import SetSpec

OUTCOME = "outcome.json"
"""The file of the outcome in the run folder."""
_ORPHANED = 3  # the exit status


def main() -> None:
    """Runs the job of standard input."""
    job = json.loads(_first_line())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with heavy_imports():
        import torch

        from masktuning.training.job import read_job
        from masktuning.training.run import run

    with collected_warnings() as warnings:
        read = read_job(job["flags"], Path(job["embedded"]))
        if job["search"]:  # by dev alone, so nothing else is measured
            kept = [one for one in read.task.sets if one.role in ("train", "dev")]
            read = replace(read, task=replace(read.task, sets=kept))
        began = time.perf_counter()
        scores = run(read, summary=False)
        seconds = time.perf_counter() - began
    measured = {one.result.name for one in scores}
    again = {one.name for one in read.task.sets if is_measured_again(one, measured)}
    sets = {
        one.result.name: SetOutcome(
            UNION if one.result.name in again else one.result.role,
            one.correct,
            _without_intervals(one.result),
        )
        for one in scores
    }
    gpu = torch.cuda.max_memory_allocated() if read.training.device.type == "cuda" else 0
    memory = gpu / 1e6 or _process_mb()
    outcome = Outcome(sets, seconds, memory, machine(), str(read.folder), tuple(warnings))
    write_json(read.folder / OUTCOME, {"identity": job["identity"], **outcome.as_json()})


def read_outcome(folder: Path, identity: str) -> Outcome | None:
    """The outcome of a finished run in a folder, if it is one of the same study's identity."""
    path = folder / OUTCOME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # a machine that lost its power may leave a file without its content
        return None
    return Outcome.from_json(content) if content.pop("identity") == identity else None


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """The warnings of this package that are logged within the block, each once."""
    found: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            message = record.getMessage().removeprefix("warning: ")
            if message not in found:
                found.append(message)

    logger, collector = logging.getLogger("masktuning"), Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield found
    finally:
        logger.removeHandler(collector)


def is_measured_again(spec: SetSpec, measured: set[str]) -> bool:
    """Whether the texts of a set are in other sets too, of which all are measured."""
    return any(others and measured.issuperset(others) for others in (spec.union_of, spec.repeats))


def _without_intervals(result: Any) -> dict[str, float]:
    """The further scores of a set; a comparison has intervals of its own."""
    return {k: v for k, v in result.more.items() if not k.endswith(("_low", "_high"))}


def _process_mb() -> float:
    """The peak of this process's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def _first_line() -> bytes:
    """The first line of standard input.

    It is read from the file descriptor, as the rest is: Python's own object for it would be locked
    by the thread that waits for the end, and a data loader's processes close that object.
    """
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(0, 1)):
        line += piece
    return line


def _end_with_parent() -> None:
    """Waits until standard input is closed, then ends the process at once."""
    while os.read(0, 1):
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)
