"""One line that shows how a training is going, in place of Trainer's bars and logs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from transformers import TrainerCallback
from transformers.utils import logging as transformers_logging


class ProgressLine(TrainerCallback):
    """Rewrites one line of a terminal as training goes on; elsewhere writes it once, at the end.

    It has the step, the latest loss and accuracy on the in-distribution set, and the seconds.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.parts: dict[str, str] = {}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.began = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in (logs or {}):
            self.parts["loss"] = f"loss {logs['loss']:.3f}"
        if sys.stdout.isatty():
            self._write(state, "\r")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if "eval_accuracy" in kwargs["metrics"]:
            self.parts["dev"] = f"dev {100 * kwargs['metrics']['eval_accuracy']:.2f}"

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._write(state, "\r" if sys.stdout.isatty() else "")
        if state.is_world_process_zero:
            print(flush=True)

    def _write(self, state: Any, start: str) -> None:
        if state.is_world_process_zero:
            step = f"step {state.global_step} of {state.max_steps}"
            seconds = f"{time.monotonic() - self.began:.0f} s"
            line = ", ".join((step, *self.parts.values(), seconds))
            print(f"{start}{self.name}: {line}", end="", flush=True)


@contextmanager
def no_bars() -> Iterator[None]:
    """No bars of transformers and datasets within the block: of tokenising, loading and saving."""
    models = transformers_logging.is_progress_bar_enabled()
    data = not are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        yield
    finally:
        if models:
            transformers_logging.enable_progress_bar()
        if data:
            enable_progress_bars()
