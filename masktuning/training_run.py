"""One run of `python -m masktuning.train`: load, train, evaluate, write the run folder."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from masktuning import run_folder
from masktuning.config import UsageError
from masktuning.data import encode, length_limit, load_texts
from masktuning.demo.checkpoint import write_checkpoint
from masktuning.methods import method_class
from masktuning.model import MaskTuningModel
from masktuning.ops import backend
from masktuning.perturbations import PerturbationLog
from masktuning.prediction import evaluate_set
from masktuning.report import model_card, text_table
from masktuning.trainer import MaskTuningTrainer

if TYPE_CHECKING:
    from masktuning.train import Options


def run(options: Options) -> None:
    """Trains, evaluates every set, and writes the run folder (see run_folder.py).

    Raises:
        UsageError: on data, a model or a folder that cannot be used; nothing is written then.
    """
    args, folder = options.training, Path(str(options.training.output_dir))
    if args.world_size > 1 and folder.parts[0] == "runs":
        raise UsageError("give --output_dir: processes would not agree on a folder's name")
    resume = run_folder.check(folder, args.resume_from_checkpoint, options.run.overwrite)
    trainer, sets = build_trainer(options)
    if options.run.overwrite and not resume and trainer.is_world_process_zero():
        run_folder.clear(folder)
    if trainer.perturbation is not None:
        trainer.add_callback(PerturbationLog(trainer, folder, options.task.labels))
    if trainer.is_world_process_zero():  # early, so that a killed run can be taken up from it
        run_folder.write_config(
            folder / run_folder.CONFIG, args, options.chosen, options.model, options.data
        )

    trained = trainer.train(resume_from_checkpoint=resume)
    results = [
        evaluate_set(trainer, name, spec_role, data)[0]
        for name, (spec_role, data) in sets.items()
        if spec_role != "train"
    ]
    trainer.save_model()
    if not trainer.is_world_process_zero():
        return
    examples = len(sets["train"][1])
    metrics: dict[str, Any] = {**trained.metrics, "train_samples": examples}
    for result in results:
        metrics.update(result.as_metrics())
    run_folder.write_json(folder / run_folder.RESULTS, metrics)
    trainer.save_state()
    facts = {
        **{k: v for k, v in asdict(args).items() if isinstance(v, int | float | str)},
        "task": options.task.name,
        "labels": options.task.labels,
        "base_model": options.model.model_name_or_path or "a randomly initialised BERT",
        "version": version("masktuning"),
        "train_samples": examples,
        "steps": trainer.state.global_step,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    run_folder.write(folder / run_folder.CARD, model_card(results, facts))
    print(f"\n{options.task.name}, {args.method}: accuracy in per cent\n")
    print(text_table(results))
    print(f"\n{folder}: the classifier, config.yaml, all_results.json and README.md")


def dry_run(options: Options, folder: str) -> None:
    """Two steps and one batch of every set in a temporary folder, and a time estimate."""
    args = options.training
    steps_wanted = args.max_steps
    args.output_dir, args.max_steps = folder, 2
    args.set_save("no")
    args.set_evaluate("no")
    trainer, sets = build_trainer(options)
    clock = _StepClock()
    trainer.add_callback(clock)
    trainer.train()
    examples = len(sets["train"][1])
    step = clock.times[-1] - clock.times[-2]
    batch = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    steps = steps_wanted
    if steps <= 0:
        steps = math.ceil(math.ceil(examples / batch) * args.num_train_epochs)
    seconds = step * steps
    print(f"train: {examples} examples, {steps} steps of {step:.3f} s")
    for name, (role, data) in sets.items():
        if role == "train":
            continue
        first = data.select(range(min(args.eval_batch_size, len(data))))
        start = time.perf_counter()
        trainer.predict(first)
        share = (time.perf_counter() - start) * len(data) / len(first)
        seconds += share
        print(f"{name}: {len(data)} examples, {share:.1f} s")
    print(f"all in all about {seconds / 60:.1f} minutes, checkpoints aside; nothing was kept")


def build_trainer(
    options: Options,
) -> tuple[MaskTuningTrainer, dict[str, tuple[str, Dataset]]]:
    """A trainer ready to train, and the encoded sets by name with their roles.

    Raises:
        UsageError: on data, a model or a back end that cannot be used.
    """
    args, task = options.training, options.task
    try:
        backend.check(args.backend)
    except backend.BackendError as error:
        raise UsageError(str(error)) from None
    if args.device.type == "cuda":
        capability = torch.cuda.get_device_capability(args.device)
        if missing := backend.missing_gpu_code(capability, torch.cuda.get_arch_list()):
            raise UsageError(missing)
    texts = load_texts(task.sets, task.labels, options.data.data_dir)
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()  # loading bars; Trainer's own stays
    set_seed(args.seed)
    model, tokenizer = load_model(options)
    limit = min(options.model.max_seq_length, length_limit(model.encoder, tokenizer))
    with args.main_process_first(desc="tokenising"):
        sets = {
            one.name: (
                one.role,
                encode(one, tokenizer, limit, options.data.preprocessing_num_workers),
            )
            for one in texts
        }
    sets = {name: (role, _first(options, role, data)) for name, (role, data) in sets.items()}
    by_role = dict(reversed(sets.values()))  # the first set of each role
    set_seed(args.seed)  # the same data order and dropout, whatever loading drew
    trainer = MaskTuningTrainer(
        model=model,
        args=args,
        train_dataset=by_role["train"],
        eval_dataset=by_role["dev"],
        processing_class=tokenizer,
    )
    return trainer, sets


def load_model(options: Options) -> tuple[MaskTuningModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that the options name, or the demo's own.

    Raises:
        UsageError: if they cannot be loaded, or the method cannot work with them.
    """
    name, task = options.model.model_name_or_path, options.task
    head = method_class(options.training.method).needs_mlm_head
    with tempfile.TemporaryDirectory() as demo:
        if name is None:
            write_checkpoint(Path(demo), options.training.seed)
        source = name or demo
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
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UsageError(first if str(source) in first else f"{source}: {first}") from None
    if tokenizer.pad_token_id is None:
        raise UsageError(f"{name}: its tokenizer has no padding token, so texts cannot be batched")
    return model, tokenizer


def _first(options: Options, role: str, data: Dataset) -> Dataset:
    wanted = options.data.max_train_samples if role == "train" else options.data.max_eval_samples
    return data if wanted is None else data.select(range(min(wanted, len(data))))


class _StepClock(TrainerCallback):
    """When each optimiser step began and the last one ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())
