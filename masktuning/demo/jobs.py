"""The trainings that the demo compares: a generated task with one method after the other."""

from __future__ import annotations

import logging

from masktuning.config.installed import version_of
from masktuning.demo import EMBEDDED
from masktuning.training.job import TrainingJob, read_job

logger = logging.getLogger(__name__)

DEBIASING = ("bias_product", "learned_mixin")
"""Methods made against a known shortcut, for a task whose settings name a bias model of its own."""


def demo_jobs(argv: list[str], tuning: TrainingJob) -> list[TrainingJob]:
    """The jobs of the flags `argv`, in the order in which they are trained.

    Args:
        argv: the words of the command line, which name no method.
        tuning: the job of these words, which trains with Mask-tuning. The other jobs have folders
            named after their methods in its folder.

    Raises:
        UsageError: for an option that one of the methods refuses.
    """
    others = ["finetuning"]
    if "bias_model" in tuning.task.settings:
        others += _installed(tuning)
    jobs = []
    for method in others:
        own = ["--method", method, "--output_dir", str(tuning.folder / method)]
        jobs.append(read_job([*argv, *own], EMBEDDED, warn=False))
    return [jobs[0], tuning, *jobs[1:]]


def _installed(tuning: TrainingJob) -> tuple[str, ...]:
    """The debiasing methods; none, with a warning, where scikit-learn is missing."""
    if version_of("scikit-learn") != "not installed":
        return DEBIASING
    if tuning.training.process_index == 0:
        logger.warning(
            "warning: %s are left out, since their bias model needs scikit-learn, which is not "
            "installed: pip install 'masktuning[bias]'",
            " and ".join(DEBIASING),
        )
    return ()
