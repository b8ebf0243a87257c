"""Schedules of Mask-tuning's alpha: how the weight of the masked-LM loss changes over a run."""

from __future__ import annotations

import math

CONSTANT = "constant"
SCHEDULES = (CONSTANT, "linear", "cosine", "warmup")
_WARMUP = 0.1  # of the run


def scheduled(schedule: str, alpha: float, progress: float) -> float:
    """The alpha of an optimiser step.

    `constant` is alpha. `linear` is alpha * (1 - p) and `cosine` alpha * (1 + cos(pi * p)) / 2,
    which fall from alpha to 0 over the run; `warmup` is alpha * min(1, 10 * p), which rises from 0
    to alpha over the first tenth of the run and stays there.

    Args:
        schedule: one of `SCHEDULES`.
        alpha: the alpha that the user gave.
        progress: p, the share of the run's optimiser steps that are done.
    """
    if schedule == "linear":
        return alpha * (1 - progress)
    if schedule == "cosine":
        return alpha * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "warmup":
        return alpha * min(1.0, progress / _WARMUP)
    return alpha
