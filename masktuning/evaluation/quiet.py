"""Runs without progress bars and warnings, for scripts that read a command's output."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging

from masktuning.config.installed import import_datasets


@contextmanager
def less_output(progress: bool, warnings: bool) -> Iterator[None]:
    """A context in which progress bars and warnings are shown only if the arguments say so.

    Args:
        progress: whether tokenising shows progress bars. Those of predicting are not touched:
            `evaluation.predict.predictor` has an argument of its own for them.
        warnings: whether this package and transformers may warn.
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
