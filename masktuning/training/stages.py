"""The earlier trainings that a method needs: run once each, kept, and resumed after a stop."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

from accelerate import PartialState

from masktuning.config.errors import UsageError, one_line
from masktuning.config.options import RunArguments
from masktuning.methods import method_class
from masktuning.methods.base import Stage
from masktuning.training import run_folder
from masktuning.training.arguments import arguments_for, method_options
from masktuning.training.job import TrainingJob


def pending_stages(job: TrainingJob, fresh: bool) -> Iterator[TrainingJob]:
    """The jobs of the stages that are not complete yet, in their order.

    A stage with the same config.yaml that is complete is kept, one that was stopped is resumed.
    Where the run begins anew (`fresh`) in the folder of an earlier one, its stages are removed.
    """
    stages = method_class(job.training.method).stages(method_options(job.training))
    if fresh and run_folder.holds_run(job.folder) and job.training.process_index == 0:
        shutil.rmtree(job.folder / run_folder.STAGES, ignore_errors=True)
    if stages:
        PartialState().wait_for_everyone()
    for stage in stages:
        made = stage_job(job, stage)
        config = made.folder / run_folder.CONFIG
        text = config.read_text(encoding="utf-8") if config.is_file() else ""
        same = text == run_folder.config_text(made)
        if same and (made.folder / run_folder.RESULTS).is_file():
            continue
        if same and run_folder.last_checkpoint(made.folder) is not None:
            made.training.resume_from_checkpoint = "last"
        else:
            made.run.overwrite = True
        yield made


def stage_job(job: TrainingJob, stage: Stage) -> TrainingJob:
    """The job of a stage: the run's own, with the stage's method and arguments.

    Raises:
        UsageError: if the stage has an argument that its method's training does not have.
    """
    training_class = arguments_for(stage.method)
    names = {f.name for f in fields(training_class) if f.init}
    given = {name: getattr(job.training, name) for name in job.chosen & names}
    given |= {**stage.arguments, "method": stage.method, "resume_from_checkpoint": None}
    given["output_dir"] = str(stage_folder(job, stage.name))
    given |= {"do_predict": False, "push_to_hub": False}
    if unknown := given.keys() - names:
        raise UsageError(f"the stage {stage.name!r} has no argument {sorted(unknown)[0]!r}")
    try:
        training = training_class(**given)
    except ValueError as error:
        raise UsageError(f"the stage {stage.name!r} of the method: {one_line(error)}") from None
    training.do_train = True
    training.do_eval = stage.arguments.get("do_eval", job.training.do_eval)
    # A stage that measures nothing, or something of its own, measures no set of the task.
    nothing = stage.arguments.get("eval_strategy") == "no"
    of_task = not (nothing or method_class(stage.method).measures)
    run = RunArguments(
        eval_ood=job.run.eval_ood if of_task else "end",
        early_stopping_patience=stage.early_stopping_patience,
    )
    start = None if stage.starts_from is None else stage_folder(job, stage.starts_from)
    return TrainingJob(
        job.model,
        job.data,
        training,
        run,
        job.task,
        job.chosen | stage.arguments.keys() | {"output_dir"},
        job.embedded,
        start,
    )


def started(job: TrainingJob) -> TrainingJob:
    """The job with the checkpoint that its training starts from, if that is a stage's."""
    if job.start is not None:  # a stage, which says itself where it starts
        return job
    options = method_options(job.training)
    name = method_class(job.training.method).starts_from(options)
    return job if name is None else replace(job, start=stage_folder(job, name), loaded=[])


def stage_folder(job: TrainingJob, name: str) -> Path:
    """Where the result of a stage of this run is."""
    return job.folder / run_folder.STAGES / name
