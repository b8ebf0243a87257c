"""MaskTuningTrainer: Hugging Face's Trainer with the methods' training step.

    from masktuning import MaskTuningArguments as TrainingArguments
    from masktuning import MaskTuningTrainer as Trainer

Shapes: B examples, C classes, L tokens.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalPrediction, IntervalStrategy

from masktuning.arguments import MaskTuningArguments
from masktuning.collator import MaskTuningCollator
from masktuning.gradients import GradientNorms
from masktuning.methods import method_class
from masktuning.methods.step import StepContext, StepTerms
from masktuning.model import MaskTuningModel
from masktuning.objective import perturbation_from
from masktuning.ops import backend

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
        model: MaskTuningModel | PreTrainedModel,
        args: MaskTuningArguments,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        tokenizer = processing_class or getattr(data_collator, "tokenizer", None)
        if tokenizer is None:
            raise ValueError("processing_class is missing: give the model's tokenizer")
        method = method_class(args.method)
        if method.needs_mlm_head and tokenizer.mask_token_id is None:
            raise ValueError(f"{args.method} needs a tokenizer with a mask token")
        if isinstance(model, PreTrainedModel):
            model = MaskTuningModel.from_classifier(model, mlm_head=method.needs_mlm_head)
        if args.n_gpu > 1:
            logger.warning(
                "%d GPUs are here and one is used; start with `torchrun --nproc_per_node=%d` to "
                "use them all",
                args.n_gpu,
                args.n_gpu,
            )
            args._n_gpu = 1
        collator = data_collator
        if not isinstance(collator, MaskTuningCollator):
            collator = MaskTuningCollator(tokenizer, args.mask_rate, pad=data_collator)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=with_example_ids(train_dataset),
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics or accuracy,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        self.options = args  # `self.args`, with its own type
        self.method = method(args.alpha)
        self.tokenizer = tokenizer
        self.perturbation = None
        if method.needs_mlm_head:
            self.perturbation = perturbation_from(
                tokenizer,
                model.config.vocab_size,
                args.corruption,
                top_k=args.top_k,
                temperature=args.temperature,
                include_original=args.include_original,
            ).to(args.device)
        self._rng: Tensor | None = None
        self._visit = -1
        self._norms: GradientNorms | None = None
        self._terms: list[Tensor] = []  # sums since the last log: mlm, cls, same, masked, norms

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer.train, on the back end that the arguments name."""
        with backend.use(self.options.backend):
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
        self._record(terms)
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
        if "loss" in logs and self._terms:
            logs.update(self._pop_terms())
        super().log(logs, start_time)

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
        visit = int(self.state.epoch or 0)
        if self._rng is None or self._visit != visit:
            self._visit = visit
            self._rng = torch.tensor([self.args.seed, visit]).to(self.args.device)
        return self._rng

    def _backward(self, loss: Tensor, mlm: bool = False) -> None:
        if mlm and self._norms is not None:
            self._norms.backward_mlm(self.accelerator.backward, loss)
        else:
            self.accelerator.backward(loss)

    def _logs_this_step(self) -> bool:
        step = self.state.global_step + 1
        if self.args.logging_strategy != IntervalStrategy.STEPS:
            return False
        every = self.state.logging_steps
        return step % every == 0 or (step == 1 and self.args.logging_first_step)

    def _record(self, terms: StepTerms) -> None:
        values = torch.stack([t.float() for t in terms[1:]])
        if not self._terms:
            self._terms = [torch.zeros_like(values), values.new_zeros(1)]
        self._terms[0] += values
        if self.accelerator.gradient_state.sync_gradients:  # the step's last micro-batch
            self._terms[1] += 1
            if self._norms is not None:
                scaler = self.accelerator.scaler
                scale = 1.0 if scaler is None else scaler.get_scale()
                self._terms = [*self._terms[:2], *self._norms.finish(scale)]
                self._norms = None

    def _pop_terms(self) -> dict[str, float]:
        sums, steps, *norms = self._terms
        self._terms = []
        # Of every process the share of the step's mean times their number: the mean is the term.
        sums = self.accelerator.reduce(sums, "mean")
        mlm, classification, same, masked = sums.tolist()
        logs = {"loss_cls": classification / steps.item()}
        if masked:
            logs["loss_mlm"] = mlm / steps.item()
            logs["same_token_share"] = same / masked
        if norms:
            logs["grad_norm_mlm"], logs["grad_norm_cls"] = (norm.item() for norm in norms)
        return logs

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


class _Numbered(torch.utils.data.Dataset):
    """A map-style dataset of mappings, with its row numbers as `example_id`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"example_id": index, **self.rows[index]}


def with_example_ids(dataset: Any) -> Any:
    """`dataset` with its row numbers as `example_id`, unless its rows have that already.

    Raises:
        ValueError: for a stream without that column: its rows have no number to draw masks by.
    """
    columns = getattr(dataset, "column_names", None) or ()
    if dataset is None or "example_id" in columns:
        return dataset
    if isinstance(dataset, Dataset):
        return dataset.add_column("example_id", np.arange(len(dataset)))
    if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        return _Numbered(dataset)
    raise ValueError(
        "train_dataset is a stream without an example_id column: add each row's number as one"
    )


def accuracy(predictions: EvalPrediction) -> dict[str, float]:
    """Share of examples whose largest logit is the label's."""
    chosen = np.asarray(predictions.predictions).argmax(-1)
    return {"accuracy": float((chosen == predictions.label_ids).mean())}
