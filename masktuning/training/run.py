"""One training run: its stages, the training, the evaluation of every set, and the run folder."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from masktuning.config.files import write, write_json
from masktuning.data.tokenize import EncodedSet
from masktuning.data.unlabelled import TEST_FILE
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.predict import predict
from masktuning.evaluation.results import write_predictions
from masktuning.evaluation.scoring import Scored, only_label
from masktuning.evaluation.tables import details_table, text_table
from masktuning.methods import method_class
from masktuning.training import run_folder
from masktuning.training.build import build_trainer, training_examples
from masktuning.training.hub import upload
from masktuning.training.job import TrainingJob
from masktuning.training.loss_log import means
from masktuning.training.model_card import card_of
from masktuning.training.own_measures import final_metrics, measures_itself
from masktuning.training.perturbation_log import PerturbationLog
from masktuning.training.resuming import train_or_resume
from masktuning.training.selection import prepare_selection, say_selection
from masktuning.training.sets_of_run import SetsOfRun, accuracies
from masktuning.training.stages import pending_stages, started
from masktuning.training.time_log import as_metrics, from_metrics, time_table
from masktuning.training.trainer import MaskTuningTrainer

logger = logging.getLogger(__name__)


def run(
    job: TrainingJob, summary: bool = True, progress: TrainerCallback | None = None
) -> list[Scored]:
    """Trains, evaluates every set, and writes the run folder.

    Args:
        job: what to train, on what, and where to.
        summary: whether to print the results.
        progress: what shows the progress, in place of Trainer's bar and its lines of the log.

    Returns:
        What was measured; nothing in processes other than the first.

    Raises:
        UsageError: for data, a model or a folder that cannot be used; apart from the stages of a
            method, nothing is written then.
    """
    job.check_processes()
    resume = check_folder(job)
    for stage in pending_stages(job, fresh=resume is None):
        if job.training.process_index == 0:
            print(f"stage of {job.training.method}: {stage.training.method}, into {stage.folder}")
        run(stage, summary=False)
        PartialState().wait_for_everyone()  # the first process writes what the others read next
    began = time.perf_counter()
    trainer, sets = build_trainer(started(job))
    if progress is not None:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)  # Trainer's choice with --disable_tqdm
        trainer.add_callback(progress)
    trainer.add_callback(_WriteConfig(job, fresh=resume is None))
    trainer.add_callback(PerturbationLog(trainer, job.folder, job.task.labels))
    trainer.sets = SetsOfRun(sets, job.task, job.run.eval_ood == "epoch")
    prepare_selection(job, trainer, trainer.sets)
    trained, anew = train_or_resume(job, trainer, resume)
    say_selection(job, trainer)
    again = not anew and bool(run_folder.read_results(job.folder))
    # Before anything else, since evaluation in 16 bits would cast it; the hub gets it at the end.
    trainer.save_model(_internal_call=True)
    measured: dict[str, float] = {}
    scores: dict[str, Scored] = {}
    if measures_itself(trainer):
        measured = final_metrics(trainer)
    elif job.training.do_eval:
        scores = _evaluate(trainer, trainer.sets)
    if job.training.do_predict:
        _predict(job, trainer, sets)
    results = [one.result for one in scores.values()]
    if not trainer.is_world_process_zero():
        return []
    # Where nothing was left to train, the run's time is that of the call that trained it.
    trained = {**_seconds(trainer, time.perf_counter() - began), **trained, **measured}
    metrics = _write_results(job, trainer, trained, results)
    _print_results(job, trainer, metrics, results if summary else [])
    _warn_of_constant(scores, job.training.method)
    # Only now, since until here the run could be resumed. Where this call had nothing to train, the
    # call that trained has already removed the optimizer's states or kept them.
    if not (job.run.keep_optimizer_states or again):
        _remove_optimizers(job, summary)
    if job.training.push_to_hub:
        upload(job, trainer)
    return [*scores.values()]


def check_folder(job: TrainingJob) -> str | None:
    """The checkpoint to resume from; see `run_folder.check`."""
    head = "mlm_head" in method_class(job.training.method).requires
    resume = job.training.resume_from_checkpoint
    return run_folder.check(job.folder, resume, job.run.overwrite, head)


def _evaluate(trainer: MaskTuningTrainer, sets: SetsOfRun) -> dict[str, Scored]:
    """Measures and logs every set but the training set; training may have measured some already."""
    dev = trainer.dev_logits()
    known = trainer.other_logits() | ({} if dev is None else {sets.dev: dev})
    with trainer.time_log.during("evaluation"):
        scores = sets.scores(known | sets.logits(trainer, except_for=known))
    trainer.log(accuracies(scores))  # for trainer_state.json and the trackers
    return scores


def _predict(job: TrainingJob, trainer: MaskTuningTrainer, sets: list[EncodedSet]) -> None:
    """Writes the predicted labels of --test_file."""
    test = next(one for one in sets if one.texts.role == TEST_FILE)
    logits = predict(trainer, test.data)
    if trainer.is_world_process_zero():
        path = write_predictions(job.folder, test.texts, logits, job.task.labels)
        print(f"{path}: the predicted labels of {len(test.texts)} texts")


def _warn_of_constant(scores: Mapping[str, Scored], method: str) -> None:
    """Warns of a classifier that gives every text of the in-distribution set one label."""
    dev = next((one for one in scores.values() if one.result.role == "dev"), None)
    if dev is not None and (label := only_label(dev)) is not None:
        logger.warning(
            "warning: the classifier gives all %d texts of %s the label %r. It has learned nothing "
            "that tells them apart: train longer, or try another --learning_rate%s",
            dev.result.n,
            dev.result.name,
            label,
            "" if method == "finetuning" else ", or compare it with --method finetuning",
        )


def _seconds(trainer: MaskTuningTrainer, whole: float) -> dict[str, float]:
    """The seconds of each part of a run that took `whole` seconds, loading and saving included."""
    seconds = trainer.time_log.seconds()
    seconds["rest"] += whole - sum(seconds.values())
    return as_metrics(seconds)


def _write_results(
    job: TrainingJob,
    trainer: MaskTuningTrainer,
    trained: Mapping[str, Any],
    results: list[SetResult],
) -> dict[str, Any]:
    """Writes all_results.json, trainer_state.json and the model card; returns the metrics."""
    examples = training_examples(trainer)
    logged = means(trainer.state.log_history, trainer.logged_names)
    metrics: dict[str, Any] = {**trained, **logged, "train_samples": examples}
    for result in results:
        metrics.update(result.as_metrics())
    write_json(job.folder / run_folder.RESULTS, metrics)
    trainer.save_state()
    write(job.folder / run_folder.CARD, card_of(job, trainer.state, examples, results))
    return metrics


def _print_results(
    job: TrainingJob,
    trainer: MaskTuningTrainer,
    metrics: Mapping[str, Any],
    results: list[SetResult],
) -> None:
    """Prints tables of results and time (if there are results), and the method's advice anyway."""
    if results:
        print(f"\n{job.task.name}, {job.training.method}: accuracy in per cent\n")
        print(text_table(results))
        if details := details_table(results):
            print(f"\n{details}")
        print(f"\n{time_table({job.training.method: from_metrics(metrics)})}")
    if advice := trainer.method.advice(metrics):
        print(f"\n{advice}")
    if results:
        print(f"\n{job.folder}: the classifier, config.yaml, all_results.json and README.md")


def _remove_optimizers(job: TrainingJob, say: bool) -> None:
    """Removes the optimizers' states from the checkpoints of a run that is complete."""
    removed = run_folder.remove_optimizers(job.folder)
    if removed and say:
        print(
            f"{removed / 1e6:.1f} MB of optimizer states were removed from its checkpoints; "
            "--keep_optimizer_states keeps them, so that a longer run can go on from there"
        )


class _WriteConfig(TrainerCallback):
    """Writes config.yaml as training begins: all checks have passed, and a kill may come."""

    def __init__(self, job: TrainingJob, fresh: bool) -> None:
        self.job, self.fresh = job, fresh

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder, text = self.job.folder, run_folder.config_text(self.job)
            if self.fresh:
                run_folder.clear(folder, stages=False)  # those are of this run
            elif changed := run_folder.changed_options(folder, text):
                _warn_of_changes(changed)
            write(folder / run_folder.CONFIG, text)


def _warn_of_changes(changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Warns that a run goes on with other options than it began with."""
    listed = ", ".join(f"--{name} {new} (was {old})" for name, (old, new) in changed.items())
    logger.warning(
        "warning: resumed with other options than the run began with: %s. Steps that are done keep "
        "what they were done with, and so does the state of the optimizer and its learning rate; "
        "config.yaml holds the new options from here on",
        listed,
    )
