"""Runs without progress bars and warnings, for scripts that read a command's output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from masktuning.config.installed import import_datasets


@contextmanager
def less_output(progress: bool, warnings: bool) -> Iterator[None]:
    """Within it, tokenising shows progress bars only if `progress`, and nothing warns unless so.

    The bars of predicting are for `evaluation.predict.predictor` to leave out.
    """
    datasets = import_datasets()
    ours = logging.getLogger("masktuning")
    level, verbosity = ours.level, transformers_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    if not progress:
        datasets.disable_progress_bars()
    if not warnings:
        ours.setLevel(logging.ERROR)
        transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        ours.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
