"""Where the time of a training run goes: a clock of laps, each of which belongs to one part.

The host's clock ends a lap on the CPU. A GPU works behind the host, so a lap there lies between two
CUDA events on its stream, and nothing waits for them before the figures are read. Events cost the
host microseconds each: only every so many steps are split into their parts, and the time of the
others is distributed as theirs was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from masktuning.evaluation.tables import aligned

IN_MODEL = ("encoder", "head", "row_kernel")
OF_STEP = (*IN_MODEL, "optimizer", "data")
PARTS = (*OF_STEP, "evaluation", "rest")
"""encoder: both directions of all its passes; head: masking, both heads and the losses, but for the
row kernel of the masked-LM head; optimizer: clipping and the step; data: waiting for batches and
moving them; rest: loading, logging, checkpoints and what else there is."""
_UNSPLIT = "step"
_SPLIT_STEPS = 50  # of a run, on a GPU
_PENDING = 1000  # laps that are kept until they are added up
_KEY = "train_seconds_"


class TimeLog:
    """The seconds that each part of a run took; one part or none is under way at any time."""

    def __init__(self, device: torch.device) -> None:
        self.part: str | None = None
        """The part under way."""
        self._gpu = device.type == "cuda"
        self._now: Callable[[], Any] = _event if self._gpu else time.perf_counter
        self._laps: list[tuple[str | None, Any]] = []  # parts and when they began
        self._every, self._step, self._split = 1, 0, True
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured; the part under way begins anew."""
        self._seconds = dict.fromkeys((*PARTS, _UNSPLIT), 0.0)
        self._laps = [(self.part, self._now())] if self.part else []

    def enter(self, part: str | None) -> None:
        """Ends the part under way and begins another one, or none."""
        if part in OF_STEP and not self._split:
            part = _UNSPLIT
        if part == self.part:
            return
        self._laps.append((part, self._now()))
        self.part = part
        if len(self._laps) > _PENDING:
            self._add_up()

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Counts a block as `part`, and goes on with the part before it."""
        before = self.part
        self.enter(part)
        try:
            yield
        finally:
            self.enter(before)

    @property
    def in_model(self) -> bool:
        """Whether a part of the model's forward and backward passes is under way."""
        return self.part in IN_MODEL

    def begin_training(self, steps: int) -> None:
        """Decides which of the `steps` optimiser steps that follow are split; on the CPU all are.

        The first of them is in the first hundredth, so that a run that stops early has one too.
        """
        self._every = max(1, steps // _SPLIT_STEPS) if self._gpu else 1
        self._step, self._split = 0, self._every == 1

    def end_step(self) -> None:
        """The optimizer has taken its step; the rest, and then the next step, begins."""
        self.enter("rest")
        self._step += 1
        self._split = self._step % self._every == self._every // 2

    def seconds(self) -> dict[str, float]:
        """The seconds of each part, without the lap under way."""
        if self._gpu and self._laps:
            self._laps[-1][1].synchronize()
        self._add_up()
        found = dict(self._seconds)
        unsplit = found.pop(_UNSPLIT)
        split = sum(found[part] for part in OF_STEP)
        if split == 0:
            found["rest"] += unsplit
            return found
        return {k: v * (1 + unsplit / split) if k in OF_STEP else v for k, v in found.items()}

    def _add_up(self) -> None:
        """Adds the laps that have ended; a GPU may not have come to the end of the latest ones."""
        ended = 0
        for (part, began), (_, end) in pairwise(self._laps):
            if self._gpu and not end.query():
                break
            ended += 1
            if part is not None:
                lap = began.elapsed_time(end) / 1000 if self._gpu else end - began
                self._seconds[part] += lap
        del self._laps[:ended]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def as_metrics(seconds: Mapping[str, float]) -> dict[str, float]:
    """The parts that took any time under the names that they have in all_results.json."""
    return {f"{_KEY}{part}": value for part, value in seconds.items() if value > 0}


def from_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What `as_metrics` made of the seconds; those of parts that took no time are missing."""
    return {part: metrics[f"{_KEY}{part}"] for part in PARTS if f"{_KEY}{part}" in metrics}


def time_table(runs: Mapping[str, Mapping[str, float]]) -> str:
    """The seconds and the share of each part, one row per part and one column per run."""
    wholes = [sum(seconds.values()) for seconds in runs.values()]
    rows = [("time", *runs)]
    for part in PARTS:
        values = [seconds.get(part, 0.0) for seconds in runs.values()]
        if any(values):
            rows.append((part.replace("_", " "), *map(_cell, values, wholes)))
    return aligned([*rows, ("all", *map(_cell, wholes, wholes))])


def _cell(seconds: float, whole: float) -> str:
    return f"{seconds:8.1f} s {100 * seconds / max(whole, 1e-9):3.0f} %"
