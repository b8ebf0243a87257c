"""Trainer callbacks that measure the time and the memory of optimizer steps."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer, TrainerCallback, TrainerState

GPU = torch.cuda.is_available()
# torch's profiler would print two lines to the terminal each time it runs.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class StepTimes(TrainerCallback):
    """The seconds of every step: forward and backward passes, clipping, optimizer, scheduler.

    The batch is there already when a step begins.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._start = now()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds.append(now() - self._start)


class PeakMemory(TrainerCallback):
    """The most bytes that the first two steps allocate in addition to what was there before.

    That includes what is kept from step to step, such as the optimizer's state, which the first one
    allocates at its end.
    """

    STEPS = 2

    def __init__(self) -> None:
        self.peak = 0
        self._before = 0
        self._profile: Any = None

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step != 0:
            return
        if GPU:
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step != self.STEPS:
            return
        if GPU:
            torch.cuda.synchronize()
            self.peak = torch.cuda.max_memory_allocated() - self._before
        else:
            self._profile.stop()
            self.peak = _highest_total(self._profile)


def _highest_total(profiled: Any) -> int:
    """The maximum of the running total of what was allocated and freed on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event for event in events if event["name"] == "[memory]"]
    total = highest = 0
    for event in sorted(changes, key=lambda event: event["ts"]):
        total += event["args"]["Bytes"]
        highest = max(highest, total)
    return highest


def held_bytes(trainer: Trainer) -> int:
    """The bytes of a model before its first step: weights and buffers."""
    model: Any = trainer.model
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def now() -> float:
    """Seconds of a clock, after the GPU has finished its work."""
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()
