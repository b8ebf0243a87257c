"""One run of `python -m masktuning.train`: load, train, evaluate, write the run folder."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerState,
    set_seed,
)
from transformers.utils import logging as transformers_logging

from masktuning import __version__
from masktuning.config.errors import UsageError, one_line
from masktuning.config.files import write, write_json
from masktuning.data.load import load_texts
from masktuning.data.tokenize import EncodedSet, encode, length_limit
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.predict import evaluate_sets
from masktuning.evaluation.tables import details_table, text_table
from masktuning.methods import method_class
from masktuning.modeling.loading import LOADING_ERRORS, check_folder
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import backends
from masktuning.training import run_folder
from masktuning.training.arguments import MaskTuningArguments
from masktuning.training.job import TrainingJob
from masktuning.training.model_card import model_card
from masktuning.training.perturbation_log import PerturbationLog
from masktuning.training.trainer import MaskTuningTrainer


def run(options: TrainingJob, summary: bool = True) -> list[SetResult]:
    """Trains, evaluates every set, and writes the run folder (see run_folder.py).

    Prints how it went, with `summary`; returns what was measured (nothing in other processes).

    Raises:
        UsageError: on data, a model or a folder that cannot be used; nothing is written then.
    """
    args, folder = options.training, Path(str(options.training.output_dir))
    if args.world_size > 1 and "output_dir" not in options.chosen:
        raise UsageError("give --output_dir: processes would not agree on a folder's name")
    head = method_class(args.method).needs_mlm_head
    resume = run_folder.check(folder, args.resume_from_checkpoint, options.run.overwrite, head)
    trainer, sets = build_trainer(options)
    trainer.add_callback(_Begin(options, folder, fresh=resume is None))
    if head:
        trainer.add_callback(PerturbationLog(trainer, folder, options.task.labels))

    examples = training_examples(sets)
    complete = resume is not None and run_folder.step_of(resume) >= planned_steps(args, examples)
    if resume and complete:  # Trainer would take one more step
        print("the run was complete: nothing is left to train")
        trainer._load_from_checkpoint(resume)
        trainer.state = TrainerState.load_from_json(f"{resume}/trainer_state.json")
        trained = run_folder.read_results(folder)
    else:
        trained = trainer.train(resume_from_checkpoint=resume).metrics
    trainer.save_model()  # before anything else: evaluation in 16 bits would cast it
    measured = [one for one in sets if one.texts.role != "train"]
    scores = evaluate_sets(trainer, measured, options.task, options.task.labels)
    results = [one.result for one in scores.values()]
    if not trainer.is_world_process_zero():
        return []
    metrics: dict[str, Any] = {
        **trained,
        **_means(trainer.state.log_history),
        "train_samples": examples,
    }
    for result in results:
        metrics.update(result.as_metrics())
    write_json(folder / run_folder.RESULTS, metrics)
    trainer.save_state()
    facts = {
        **{f.name: getattr(args, f.name) for f in fields(args)},
        "num_train_epochs": round(trainer.state.epoch or 0.0, 2),  # --max_steps may end it early
        "task": options.task.name,
        "labels": options.task.labels,
        "base_model": options.model.model_name_or_path or "the embedded checkpoint",
        "version": __version__,
        "train_samples": examples,
        "steps": trainer.state.global_step,
        "selection": f"the best {args.metric_for_best_model} on dev"
        if args.load_best_model_at_end
        else "the last step's model",
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    write(folder / run_folder.CARD, model_card(results, facts))
    if summary:
        print(f"\n{options.task.name}, {args.method}: accuracy in per cent\n")
        print(text_table(results))
        if details := details_table(results):
            print(f"\n{details}")
    mlm, rest = (metrics.get(f"train_grad_norm_{part}", 0.0) for part in ("mlm", "cls"))
    if mlm > 5 * rest:
        print(
            f"\nOn average the masked-LM gradient was {mlm / max(rest, 1e-9):.0f} times the "
            "classifier's, which hardly steered the encoder. A smaller --alpha may serve better."
        )
    if summary:
        print(f"\n{folder}: the classifier, config.yaml, all_results.json and README.md")
    return results


def training_examples(sets: list[EncodedSet]) -> int:
    """How many examples there are to train on."""
    return next(len(one.texts) for one in sets if one.texts.role == "train")


def planned_steps(args: MaskTuningArguments, examples: int) -> int:
    """How many optimiser steps a run has, as Trainer counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    return math.ceil(math.ceil(examples / batch) * args.num_train_epochs)


def _means(logs: list[dict[str, float]]) -> dict[str, float]:
    """Means over the log of the two losses and of their gradients' norms before clipping."""
    names = ("loss_mlm", "loss_cls", "grad_norm_mlm", "grad_norm_cls", "same_token_share")
    found = {name: [log[name] for log in logs if name in log] for name in names}
    return {f"train_{name}": sum(v) / len(v) for name, v in found.items() if v}


def build_trainer(options: TrainingJob) -> tuple[MaskTuningTrainer, list[EncodedSet]]:
    """A trainer ready to train, and the encoded sets.

    Raises:
        UsageError: on data, a model or a back end that cannot be used.
    """
    args, task = options.training, options.task
    try:
        backends.check(args.backend)
        if args.backend == "auto":  # or the flag wins
            backends.check(os.environ.get(backends.ENVIRONMENT, "auto"))
    except backends.BackendError as error:
        raise UsageError(str(error)) from None
    if args.device.type == "cuda":
        capability = torch.cuda.get_device_capability(args.device)
        if missing := backends.missing_gpu_code(capability, torch.cuda.get_arch_list()):
            raise UsageError(missing)
    texts = load_texts(task.sets, task.labels, options.data.data_dir)
    wanted = {"train": options.data.max_train_samples}
    texts = [one.first(wanted.get(one.role, options.data.max_eval_samples)) for one in texts]
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # loading bars; Trainer's own stays
    set_seed(args.seed)
    model, tokenizer = load_model(options)
    limit = length_limit(model.encoder, model.config, tokenizer)
    limit = min(options.model.max_seq_length, limit)
    workers = options.data.preprocessing_num_workers
    with args.main_process_first(desc="tokenising"):
        sets = [EncodedSet(one, encode(one, tokenizer, limit, workers)) for one in texts]
    by_role = {one.texts.role: one.data for one in reversed(sets)}  # the first set of each role
    set_seed(args.seed)  # the same data order and dropout, whatever loading drew
    try:
        trainer = MaskTuningTrainer(
            model=model,
            args=args,
            train_dataset=by_role["train"],
            eval_dataset=by_role["dev"],
            processing_class=tokenizer,
        )
    except (ImportError, RuntimeError, ValueError) as error:  # a logger that is not installed, ...
        raise UsageError(one_line(error)) from None
    return trainer, sets


def load_model(options: TrainingJob) -> tuple[MaskTuningModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the options name, or the demo's own.

    Raises:
        UsageError: if they cannot be loaded, or the method cannot work with them.
    """
    name, task = options.model.model_name_or_path, options.task
    head = method_class(options.training.method).needs_mlm_head
    source = name or str(options.embedded)
    check_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        if head and tokenizer.mask_token_id is None:
            raise ValueError(
                f"{name}: its tokenizer has no mask token, which {options.training.method} "
                "needs; use an encoder such as BERT or RoBERTa"
            )
        model = MaskTuningModel.from_pretrained(
            source,
            mlm_head=head,
            num_labels=len(task.labels),
            id2label=dict(enumerate(task.labels)),
            label2id={label: i for i, label in enumerate(task.labels)},
        )
    except LOADING_ERRORS as error:
        reason = one_line(error)
        if "ignore_mismatched_sizes" in reason:
            reason = f"its classifier is not one of {len(task.labels)} labels; give an encoder"
        if str(source) not in reason:
            reason = f"{source}: {reason}"
        raise UsageError(reason) from None
    if tokenizer.pad_token_id is None:
        raise UsageError(f"{name}: its tokenizer has no padding token, so texts cannot be batched")
    return model, tokenizer


class _Begin(TrainerCallback):
    """Writes config.yaml as training begins: all checks are passed, and a kill may come."""

    def __init__(self, options: TrainingJob, folder: Path, fresh: bool) -> None:
        self.options, self.folder, self.fresh = options, folder, fresh

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            if self.fresh:
                run_folder.clear(self.folder)
            options = self.options
            run_folder.write_config(
                self.folder / run_folder.CONFIG,
                options.training,
                options.chosen,
                options.model,
                options.data,
            )
