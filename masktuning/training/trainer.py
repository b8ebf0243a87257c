"""MaskTuningTrainer: Hugging Face's Trainer with the methods' training step.

    from masktuning import MaskTuningArguments as TrainingArguments
    from masktuning import MaskTuningTrainer as Trainer

Shapes: B examples, C classes, L tokens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalPrediction, IntervalStrategy
from transformers.training_args import OptimizerNames

from masktuning.data.collator import MaskTuningCollator
from masktuning.data.example_ids import with_example_ids
from masktuning.evaluation.metrics import accuracy
from masktuning.methods import method_class
from masktuning.methods.step import StepContext
from masktuning.modeling.perturbation import perturbation_from
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import backends
from masktuning.training.arguments import MaskTuningArguments
from masktuning.training.gradient_norms import GradientNorms
from masktuning.training.loss_log import StepLog

logger = logging.getLogger(__name__)


class MaskTuningTrainer(Trainer):
    """A Trainer that trains with a method of masktuning; evaluation classifies the clean text.

    Args:
        model: a MaskTuningModel, or a stock sequence classifier loaded from a checkpoint, whose
            masked-LM head is then loaded from that same checkpoint.
        args: MaskTuningArguments.
        train_dataset: tokenised rows; without an `example_id` column the row number is used.
        data_collator: how to pad; masks are prepared on top of it.
        processing_class: the tokenizer.
        The others are Trainer's own.

    Both losses are means over the whole optimiser step: over micro-batches and processes.
    Logs `loss_mlm`, `loss_cls`, `same_token_share` (how often the prediction equals the token it
    replaces: at top_k=1 the masked LM's accuracy) and, where the two terms are back-propagated
    apart, `grad_norm_mlm` and `grad_norm_cls`, the norms before clipping, of alpha * L_MLM and
    (1 - alpha) * L_FT.

    Raises:
        ValueError: without a tokenizer or with one that has no mask token.
    """

    # Our losses are divided by the whole step's counts already; see get_batch_samples.
    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: MaskTuningModel | PreTrainedModel | None = None,
        args: MaskTuningArguments | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        args = args or MaskTuningArguments()
        tokenizer = processing_class or getattr(data_collator, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("processing_class is missing: give the model's tokenizer")
        self.options = args  # `self.args`, with its own type
        self.tokenizer = tokenizer
        if method_class(args.method).needs_mlm_head and tokenizer.mask_token_id is None:
            raise ValueError(f"{args.method} needs a tokenizer with a mask token")
        if args.n_gpu > 1:
            logger.warning(
                "%d GPUs are here and one is used; start with `torchrun --nproc_per_node=%d` to "
                "use them all",
                args.n_gpu,
                args.n_gpu,
            )
            args._n_gpu = 1
        collator = data_collator
        self._made_collator = None
        if not isinstance(collator, MaskTuningCollator):  # one of the user's keeps its own rate
            collator = MaskTuningCollator(tokenizer, args.mask_rate, pad=data_collator)
            self._made_collator = collator
        super().__init__(
            model=None if model is None else self._shared(model),
            args=args,
            data_collator=collator,
            train_dataset=with_example_ids(train_dataset),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics or accuracy,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        self._read_options()
        self._rng: Tensor | None = None
        self._rng_epoch = -1
        self._norms: GradientNorms | None = None
        self._log = StepLog()

    def call_model_init(self, trial: Any = None) -> MaskTuningModel:
        """A fresh model for a run of a sweep; `model_init` may return a stock classifier."""
        return self._shared(super().call_model_init(trial))

    def get_train_dataloader(self) -> Any:
        """Trainer's, after taking up the options: a sweep sets them anew for each run."""
        self._read_options()
        return super().get_train_dataloader()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, on the back end that the arguments name."""
        with backends.use(self.options.backend):
            return super().train(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches and what its two sums are divided by, [2] on the device.

        Masked tokens and labels are counted over micro-batches and processes and divided by the
        number of processes, since DDP averages gradients: world_size * sum / count each.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        return batches, self._denominators(batches)

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """Forward and backward of one micro-batch; `num_items_in_batch` are the denominators."""
        model.train()
        if callable(train := getattr(self.optimizer, "train", None)):
            train()  # schedule-free optimisers have one
        inputs = self._prepare_inputs(inputs)
        if num_items_in_batch is None:
            num_items_in_batch = self._denominators([inputs])
        ddp = isinstance(model, DistributedDataParallel)
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        context = StepContext(
            rng=self._current_rng(),
            denominators=num_items_in_batch,
            perturbation=self.perturbation,
            label_smoothing=self.args.label_smoothing_factor,
            # DDP finds in its second backward that the head's gradients are there already only if
            # it looks for unused parameters; sharded models reduce at every backward.
            two_phase=model.find_unused_parameters if ddp else not sharded,
            backward=self._backward,
            no_sync=model.no_sync if ddp else contextlib.nullcontext,
        )
        apart = context.two_phase and self.perturbation is not None
        if self._norms is None and apart and self._logs_this_step():
            self._norms = GradientNorms(model.parameters())
        with self.compute_loss_context_manager():
            terms = self.method.step(model, inputs, context)
        last = self.accelerator.gradient_state.sync_gradients  # micro-batch of its step
        self._log.add(terms, last)
        if last and self._norms is not None:
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None else scaler.get_scale()
            self._log.norms = self._norms.finish(scale)
            self._norms = None
        return terms.loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The mean classification loss on clean text; used in evaluation only."""
        outputs = model(**inputs)
        loss = F.cross_entropy(outputs.logits.float(), inputs["labels"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer.log, with the terms of the loss averaged since the last training log."""
        if "loss" in logs:
            logs.update(self._log.pop(self.accelerator))
        super().log(logs, start_time)

    def _shared(self, model: Any) -> MaskTuningModel:
        if isinstance(model, MaskTuningModel):
            return model
        head = method_class(self.options.method).needs_mlm_head
        return MaskTuningModel.from_classifier(model, mlm_head=head)

    def _read_options(self) -> None:
        """The method, its perturbation and the mask rate, from the arguments as they are now."""
        options, model = self.options, self.accelerator.unwrap_model(self.model)
        options.check()
        method = method_class(options.method)
        self.method = method(options.alpha)
        if self._made_collator is not None:
            self._made_collator.set_rate(options.mask_rate)
        self.perturbation = None
        if method.needs_mlm_head:
            self.perturbation = perturbation_from(
                self.tokenizer,
                model.config.vocab_size,
                options.corruption,
                top_k=options.top_k,
                temperature=options.temperature,
                include_original=options.include_original,
            ).to(options.device)

    def _denominators(self, batches: list[dict[str, Any]]) -> Tensor:
        labels = torch.stack([(batch["labels"] != -100).sum() for batch in batches]).sum()
        counts = torch.zeros(2, device=self.args.device)
        counts[0] = sum(batch["num_masked"] for batch in batches)
        counts[1] = labels
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, "sum") / self.args.world_size
        return counts

    def _current_rng(self) -> Tensor:
        """[2] int64 on the device: the seed, and how often the examples have been seen."""
        epoch = int(self.state.epoch or 0)
        if self._rng is None or self._rng_epoch != epoch:
            self._rng_epoch = epoch
            self._rng = torch.tensor([self.args.seed, epoch]).to(self.args.device)
        return self._rng

    def _backward(self, loss: Tensor, mlm: bool = False) -> None:
        kwargs: dict[str, Any] = {}
        if self.is_deepspeed_enabled:
            kwargs["scale_wrt_gas"] = False  # the denominators are the whole step's already
        if self.args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
            kwargs["learning_rate"] = self._get_learning_rate()
        backward = partial(self.accelerator.backward, **kwargs)
        if mlm and self._norms is not None:
            self._norms.backward_mlm(backward, loss)
        else:
            backward(loss)

    def _logs_this_step(self) -> bool:
        step = self.state.global_step + 1
        if self.args.logging_strategy != IntervalStrategy.STEPS:
            return False
        every = self.state.logging_steps
        return step % every == 0 or (step == 1 and self.args.logging_first_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # The stock method would refuse the tied decoder, and pickle the arguments.
        if self.args.should_save:
            folder = str(output_dir or self.args.output_dir)
            self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict)
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
