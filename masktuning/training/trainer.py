"""MaskTuningTrainer: Hugging Face's Trainer, with a method's losses in its training step.

    from masktuning import MaskTuningArguments as TrainingArguments
    from masktuning import MaskTuningTrainer as Trainer

Shapes: B examples, C classes, N counts of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.trainer_utils import EvalPrediction
from transformers.training_args import OptimizerNames

from masktuning.data.batch import Batch
from masktuning.data.collator import padding_collator
from masktuning.data.example_ids import with_example_ids
from masktuning.evaluation.metrics import accuracy
from masktuning.methods import method_class
from masktuning.methods.base import Method
from masktuning.methods.requirements import check_tokenizer
from masktuning.methods.step import Step
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import backends
from masktuning.training.arguments import (
    MaskTuningArguments,
    MethodArguments,
    method_options,
    use_one_gpu,
)
from masktuning.training.backward import backward_each, backward_joint
from masktuning.training.batching import BY_LENGTH, similar_length_sampler, warn_of_stream
from masktuning.training.early_checks import CheckedTrainer
from masktuning.training.gradient_norms import GradientNorms, begin_norms, end_norms, logs_step
from masktuning.training.loss_log import LossLog
from masktuning.training.method_collator import MethodCollator
from masktuning.training.other_losses import refuse_other_losses, refuse_other_problems
from masktuning.training.precision import say_precision
from masktuning.training.run_clock import RunClock
from masktuning.training.run_folder import STAGES
from masktuning.training.sharding import check_sharding
from masktuning.training.speedups import speedups
from masktuning.training.step_counts import StepCounts


class MaskTuningTrainer(CheckedTrainer):
    """A Trainer that trains with a method of masktuning; evaluation classifies the original texts.

    Args:
        model: a MaskTuningModel, or a stock sequence classifier loaded from a checkpoint, whose
            masked-LM head is then loaded from that same checkpoint if the method needs it.
        args: MaskTuningArguments, or those that `arguments_for` gives for another method.
        train_dataset: tokenised rows; without an `example_id` column the row number is used.
        data_collator: how to pad; what the method needs is added to its result.
        processing_class: the tokenizer.
        The others are Trainer's own.

    `trainer.model` is the method, a module around the model; `trainer.model.model` is the model.
    Every loss is a mean over the whole optimiser step: over its micro-batches and processes. The
    log holds `loss_<term>` for each term of the method, what the method logs besides and, where
    the terms are back-propagated one after the other, `grad_norm_<term>` before clipping.

    Raises:
        ValueError: without a tokenizer, or if the method cannot work with it or with the model; for
            a loss of the user's own, which no method would use; for FSDP on CPUs.
    """

    # The losses are divided by the whole step's counts already; see get_batch_samples.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: MaskTuningModel | PreTrainedModel | None = None,
        args: MethodArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or MaskTuningArguments()
        refuse_other_losses(self, CheckedTrainer, kwargs)
        tokenizer = processing_class or getattr(data_collator, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("processing_class is missing: give the model's tokenizer")
        self.options = args  # `self.args`, with its own type
        self.tokenizer = tokenizer
        self.method_class = method_class(args.method)
        check_tokenizer(tokenizer, self.method_class.requires)
        use_one_gpu(args)
        say_precision(args)
        collator = padding_collator(tokenizer, data_collator, args.pad_to_multiple_of)
        method = None if model is None else self._method_around(model)
        train_dataset = with_example_ids(train_dataset)
        if method is not None:
            train_dataset = self._prepared(method, train_dataset)
        super().__init__(
            model=method,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics or accuracy,
            **kwargs,
        )
        if method is None:  # Trainer has called model_init
            self.train_dataset = self._prepared(self.method, train_dataset)
        check_sharding(args, self.accelerator)
        self._speedups = speedups(args, self.accelerator, lambda: self.method.model.encoder)
        for callback in self._speedups:
            self.add_callback(callback)
        self.model_accepts_loss_kwargs = False
        self._clock = RunClock(self)
        self.add_callback(self._clock)
        self._norms: GradientNorms | None = None
        self._counts = StepCounts(args, self.accelerator)
        self._counts.weigh_classes(self.method, self.train_dataset)
        self._log = LossLog()

    @property
    def method(self) -> Method:
        """The method, without the wrapper of DDP, FSDP or DeepSpeed."""
        if isinstance(self.model, Method):  # nearly always, and unwrapping visits every module
            return self.model
        return self.accelerator.unwrap_model(self.model)

    @property
    def logged_names(self) -> set[str]:
        """What the method has logged, and the norms of its gradients."""
        return self._log.all_names

    @property
    def stages_folder(self) -> Path:
        """Where the results of the method's earlier trainings are."""
        return Path(str(self.options.output_dir)) / STAGES

    def call_model_init(self, trial: Any = None) -> Method:
        """A fresh method for a run of a sweep; `model_init` may return a stock classifier."""
        return self._method_around(super().call_model_init(trial))

    def get_train_dataloader(self) -> Any:
        """Trainer's, after taking up the options: a sweep sets them anew for each run."""
        self.method.configure(method_options(self.options))
        self.method.begin(self.train_dataset)
        self._log.begin()
        self._norms = None  # of a step that was not finished
        self._counts.weigh_classes(self.method, self.train_dataset)
        warn_of_stream(self.train_dataset, self.options)
        padding = self.data_collator
        self.data_collator = MethodCollator(padding, self.method, self._clock.for_collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padding  # evaluation needs nothing of the method

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.options.train_sampling_strategy != BY_LENGTH or not len(dataset):
            return super()._get_train_sampler(dataset)
        return similar_length_sampler(dataset, self.options, lambda: self._clock.epoch)

    def collate(self, rows: Sequence[Any]) -> dict[str, Any]:
        """A padded batch of training rows, with what the method adds to it."""
        return MethodCollator(self.data_collator, self.method, self._clock.for_collator)(rows)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, on the back end that the arguments name."""
        try:
            with backends.use(self.options.backend):
                return super().train(*args, **kwargs)
        finally:  # also where an error or a key stopped it
            self._speedups.restore()

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches, and the method's counts for all of them, [N] on the device.

        Counted over micro-batches and processes, and divided by the number of processes since DDP
        averages gradients: each mean is world_size * sum / count.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        return batches, self._counts.total(self.method, batches)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; `num_items_in_batch` are the counts [N]."""
        model.train()
        if callable(train := getattr(self.optimizer, "train", None)):
            train()  # schedule-free optimisers have one
        inputs = self._prepare_inputs(inputs)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        self.time_log.enter("head")
        method, several = self.method, len(self.method_class.terms) > 1
        clock, counts = self._clock, num_items_in_batch
        counts = self._counts.total(method, [inputs]) if counts is None else counts
        joint = several and not self._allows_backward_passes(model)
        smoothing, weights = self.args.label_smoothing_factor, self._counts.class_weights
        named = self._counts.named(counts)
        step = Step(clock.rng, named, smoothing, joint, weights, clock.progress)
        self._speedups.embedding.begin()
        losses = method.losses(Batch.from_dict(inputs), step)
        logged = logs_step(self.args, self.state)
        if self._norms is None and several and not joint:
            self._norms = begin_norms(model, method, logged)
        with self.compute_loss_context_manager():
            backward_all = backward_joint if joint else backward_each
            values = backward_all(model, method, losses, self._backward)
        ends_step = self.accelerator.gradient_state.sync_gradients
        terms = {f"loss_{term}": value for term, value in values.items()}
        self._log.add({**terms, **step.logged}, ends_step, step.without_mean())
        if ends_step and self._norms is not None:
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None else scaler.get_scale()
            norms = end_norms(self._norms, method, scale, logged)
            self._log.norms = norms or self._log.norms
            self._norms = None
        self.time_log.enter("optimizer" if ends_step else "data")
        return torch.stack([*values.values()]).sum()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer.log, with what the method logged since the last training log."""
        if "loss" in logs:
            logs.update(self._log.pop(self.accelerator))
        super().log(logs, start_time)

    def _method_around(self, model: Any) -> Method:
        refuse_other_problems(model)
        set_seed(self.options.seed)  # for what the method initialises; Trainer does so only later
        if not isinstance(model, MaskTuningModel):
            head = "mlm_head" in self.method_class.requires
            model = MaskTuningModel.from_classifier(model, mlm_head=head)
        else:
            model.find_last_layer()  # its head may have been replaced
        return self.method_class(model, self.tokenizer, method_options(self.options))

    def _prepared(self, method: Method, dataset: Any) -> Any:
        """The training set with the method's columns; the first process prepares it first."""
        if dataset is None:
            return None
        method.seed = self.options.seed
        with self.options.main_process_first(desc="preparing the training set"):
            return method.prepare(dataset, self.stages_folder)

    def _allows_backward_passes(self, model: Any) -> bool:
        """Whether several backward passes may follow several forward passes of one micro-batch."""
        if isinstance(model, DistributedDataParallel):
            # Only then does DDP find, in its last one, that other gradients are there already.
            return model.find_unused_parameters
        # Sharded models reduce their gradients at every backward pass.
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _backward(self, loss: Tensor, term: str) -> None:
        kwargs: dict[str, Any] = {}
        if self.is_deepspeed_enabled:
            kwargs["scale_wrt_gas"] = False  # the counts are the whole step's already
        if self.args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
            kwargs["learning_rate"] = self._get_learning_rate()
        backward = partial(self.accelerator.backward, **kwargs)
        if term and self._norms is not None:
            self._norms.backward(term, backward, loss)
        else:
            backward(loss)
        self.time_log.enter("head")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The stock method would refuse the tied decoder, and pickle the arguments.
        if self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            self.method.save_pretrained(folder, state_dict)
            self.tokenizer.save_pretrained(folder)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.accelerator.unwrap_model(model or self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))
