"""From a job to a trainer that is ready to train, and the sets it is trained and measured on."""

from __future__ import annotations

import logging
import math
import os
import sys
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from masktuning.config.errors import UsageError, one_line
from masktuning.data.load import LabelledTexts, load_texts
from masktuning.data.tokenize import EncodedSet, encode_all, length_limit
from masktuning.data.unlabelled import TEST_FILE, load_test
from masktuning.methods import method_class
from masktuning.methods.requirements import check_tokenizer
from masktuning.modeling.loading import (
    LOADING_ERRORS,
    check_folder,
    check_vocabulary,
    load_tokenizer,
)
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import backends
from masktuning.training.arguments import MethodArguments
from masktuning.training.job import Inputs, TrainingJob
from masktuning.training.trainer import MaskTuningTrainer

logger = logging.getLogger(__name__)


def build_trainer(job: TrainingJob) -> tuple[MaskTuningTrainer, list[EncodedSet]]:
    """A trainer ready to train, and the encoded sets.

    Raises:
        UsageError: for data, a model, a method or a back end that cannot be used.
    """
    args = job.training
    inputs = job.loaded.pop() if job.loaded else load_inputs(job)
    model, tokenizer = inputs.model, inputs.tokenizer
    limit = length_limit(model.encoder, model.config, tokenizer)
    limit = min(job.model.max_seq_length, limit)
    if job.model.pad_to_max_length:
        _pad_to(limit, args)
    workers = job.data.preprocessing_num_workers
    with args.main_process_first(desc="tokenising"):
        sets = encode_all(inputs.texts, tokenizer, limit, workers, job.data.overwrite_cache)
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
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # A logger that is not installed, a hub that cannot be reached with --push_to_hub, ...
        raise UsageError(one_line(error)) from None
    return trainer, sets


def _pad_to(length: int, args: MethodArguments) -> None:
    """Pads all batches to `length`, the largest number of tokens that a text has."""
    if args.pad_to_multiple_of is not None:
        raise UsageError("--pad_to_max_length and --pad_to_multiple_of exclude each other")
    args.pad_to_multiple_of = length
    if args.process_index == 0:
        logger.warning(
            "--pad_to_max_length: every text is padded to %d tokens, and padding takes as long as "
            "text; without this flag batches are padded to their longest text, with the same "
            "results but for rounding",
            length,
        )


def load_inputs(job: TrainingJob, texts: list[LabelledTexts] | None = None) -> Inputs:
    """What the job's run starts from; `texts` are those of another job with the same data.

    Raises:
        UsageError: for data, a model, a method or a back end that cannot be used.
    """
    check_device(job.training)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # loading bars; Trainer's own stays
    texts = read_texts(job) if texts is None else texts
    set_seed(job.training.seed)
    return Inputs(texts, *load_model(job))


def read_texts(job: TrainingJob) -> list[LabelledTexts]:
    """The texts of a job's sets, as many of each as the flags ask for.

    Raises:
        UsageError: for data that cannot be used.
    """
    texts = load_texts(job.task.sets, job.task.labels, job.data.data_dir)
    if job.training.do_predict:
        texts.append(load_test(job.data, job.task))
    wanted = {"train": job.data.max_train_samples, TEST_FILE: None}
    return [one.first(wanted.get(one.role, job.data.max_eval_samples)) for one in texts]


def check_device(args: MethodArguments) -> None:
    """Raises UsageError for a back end that is not here, or a torch without code for the GPU."""
    try:
        backends.check(args.backend)
        if args.backend == "auto":  # otherwise the flag takes precedence over the environment
            backends.check(os.environ.get(backends.ENVIRONMENT, "auto"))
    except backends.BackendError as error:
        raise UsageError(str(error)) from None
    if args.device.type == "cuda":
        capability = torch.cuda.get_device_capability(args.device)
        if missing := backends.missing_gpu_code(capability, torch.cuda.get_arch_list()):
            raise UsageError(missing)


def load_model(job: TrainingJob) -> tuple[MaskTuningModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the job names, or the embedded ones.

    Raises:
        UsageError: if they cannot be loaded, or the method cannot work with them.
    """
    labels, requires = job.task.labels, method_class(job.training.method).requires
    source = str(job.start or job.model.model_name_or_path or job.embedded)
    revision = None if job.start else job.model.model_revision
    check_folder(source, revision)
    tokenizer = load_tokenizer(source, job.model.tokenizer_name, revision)
    try:
        check_tokenizer(tokenizer, requires)
        model = MaskTuningModel.from_pretrained(
            source,
            mlm_head="mlm_head" in requires,
            revision=revision,
            ignore_mismatched_sizes=job.model.ignore_mismatched_sizes,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
    except LOADING_ERRORS as error:
        reason = one_line(error)
        if "ignore_mismatched_sizes" in reason:
            reason = (
                f"its classifier is not one of {len(labels)} labels; give an encoder, or "
                "--ignore_mismatched_sizes to begin with a new classifier"
            )
        raise UsageError(reason if source in reason else f"{source}: {reason}") from None
    if tokenizer.pad_token_id is None:
        raise UsageError(f"{source}: its tokenizer has no padding token to batch texts with")
    if job.model.tokenizer_name is not None:
        check_vocabulary(tokenizer, model.config)
    return model, tokenizer


def training_examples(trainer: MaskTuningTrainer) -> int:
    """How many rows there are to train on, those that the method added included."""
    rows: Any = trainer.train_dataset
    return len(rows)


def planned_steps(args: MethodArguments, examples: int, batch_size: int | None = None) -> int:
    """How many optimiser steps a run has, as Trainer counts them.

    `batch_size` is the number of examples of a process's micro-batch, where it is not the one of
    `args`: with `--auto_find_batch_size`, Trainer may have found a smaller one.
    """
    if args.max_steps > 0:
        return args.max_steps
    rounded = math.floor if args.dataloader_drop_last else math.ceil
    # With `split_batches`, a batch is that of all processes together.
    whole = getattr(args.accelerator_config, "split_batches", False)
    processes = 1 if whole else args.world_size
    batches = rounded(rounded(examples / (batch_size or args.train_batch_size)) / processes)
    if not batches and args.dataloader_drop_last:
        raise UsageError(
            f"--dataloader_drop_last leaves no batch of {examples} examples: leave it out, or give "
            "a smaller --per_device_train_batch_size"
        )
    steps = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    return math.ceil(steps * args.num_train_epochs)
