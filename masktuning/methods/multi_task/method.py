"""Classification of the texts as they are, and a masked LM on copies with masked tokens.

What Random Token Masking and L3Masking share; they differ in how probable it is that a token is
masked.

Shapes: B examples, L tokens, M masked positions, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from masktuning.data.batch import Batch
from masktuning.methods.base import Method
from masktuning.methods.masks.thresholds import draw_masks
from masktuning.methods.multi_task.meta_weights import HeldOut, MetaWeights, layer_parameters
from masktuning.methods.perturbation import masked_lm_pass, masks_of, perturbation_from
from masktuning.methods.step import Step
from masktuning.ops import MaskedLMOutput

logger = logging.getLogger(__name__)

META = "meta"


@dataclass
class MultiTaskOptions:
    """What both methods can be told."""

    mask_rate: float = field(
        default=0.15, metadata={"help": "Mean probability that a token of a text is masked."}
    )
    task_weights: str = field(
        default="fixed",
        metadata={
            "help": "fixed keeps mlm_weight; meta learns the weights of both losses from 96 "
            "labelled rows that it holds out of the training set.",
            "choices": ["fixed", META],
        },
    )
    mlm_weight: float = field(
        default=0.5,
        metadata={
            "help": "Weight of the masked-LM loss, 0 to 1; the rest weighs the classifier. Used "
            "with --task_weights fixed."
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}: give a share above 0, up to 1")
        if self.task_weights not in ("fixed", META):
            raise ValueError(f"task_weights is {self.task_weights}: give fixed or meta")
        if not 0 <= self.mlm_weight <= 1:
            raise ValueError(f"mlm_weight is {self.mlm_weight}: give a number from 0 to 1")


class MultiTask(Method):
    """L = w * L_MLM + (1 - w) * L_CLS, with L_CLS on the texts as they are.

    A subclass says with `thresholds` how probable it is that each token is masked.
    """

    requires = frozenset({"mlm_head"})
    terms = ("mlm", "cls")
    _told = False  # that the weights cannot be learned

    def configure(self, options: MultiTaskOptions) -> None:
        """Applies the options; see `Method.configure`."""
        super().configure(options)
        self.special_ids = torch.tensor(sorted(set(self.tokenizer.all_special_ids)))
        self.held_out: HeldOut | None = None
        if options.task_weights != META:
            self.meta: MetaWeights | None = None
        elif getattr(self, "meta", None) is None:  # a resumed run has loaded its own
            self.meta = MetaWeights().to(next(self.model.parameters()).device)
        self.perturbation = perturbation_from(
            self.tokenizer, self.model.config.vocab_size, corruption="80-10-10"
        )

    def begin(self, train: Any) -> None:
        """Chooses the rows that are held out to learn the weights of both losses."""
        if self.meta is not None:
            self.held_out = HeldOut.of(train, self.tokenizer)

    def thresholds(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """[B, L] int64, round(q * 2^32) of the probability q that each token is masked.

        What it says of special tokens and padding is ignored.
        """
        raise NotImplementedError

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Draws which tokens are masked; takes away held-out labels."""
        maskable = ~torch.isin(batch.input_ids, self.special_ids)
        if batch.attention_mask is not None:
            maskable &= batch.attention_mask.bool()
        batch.maskable = maskable
        if self.held_out is not None:
            held_B = torch.isin(batch.example_ids, self.held_out.example_ids)
            batch.labels = batch.labels.masked_fill(held_B, -100)
        thresholds_BL = self.thresholds(batch, rows)
        return draw_masks(batch, thresholds_BL, self.tokenizer.mask_token_id, type(self).__name__)

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Masked tokens and labels."""
        return {"masked": batch.num_masked, **super().counts(batch)}

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """w * L_MLM of the masked copies, then (1 - w) * L_CLS of the texts as they are."""
        w = self._mlm_weight(step)
        output, targets_M = self._masked_lm(batch, step.rng)
        mlm = step.mean(output.losses, over="masked")
        same_M = ((output.tokens == targets_M) & (targets_M >= 0)).float()
        step.log(over="masked", loss_mlm=mlm, mlm_accuracy=step.mean(same_M, over="masked"))
        yield w * mlm
        logits_BC = self.model(batch.input_ids, **batch.texts()).logits
        classification = step.cross_entropy(logits_BC, batch.labels)
        step.log(loss_cls=classification)
        if isinstance(w, Tensor):
            step.log(mlm_weight=step.mean((batch.labels != -100) * w))
        yield (1 - w) * classification

    def watched_parameters(self) -> list[nn.Parameter]:
        """With `task_weights="meta"` the parameters of the encoder's layers."""
        return [] if self.meta is None else layer_parameters(self.model.encoder)

    def after_gradients(self, gradients: Mapping[str, Sequence[Tensor | None]]) -> None:
        """Moves the weights towards the losses whose gradient agrees with the held-out rows'."""
        if self.meta is not None:
            assert self.held_out is not None
            ours = self.held_out.gradient(self.model, self.watched_parameters())
            self.meta.update([gradients[term] for term in self.terms], ours)

    def _mlm_weight(self, step: Step) -> float | Tensor:
        if self.meta is None:
            return self.options.mlm_weight
        if step.joint and not self._told:
            self._told = True
            logger.warning(
                "both losses keep the weight 0.5: --task_weights meta needs a backward pass for "
                "each, which FSDP, DeepSpeed and ddp_find_unused_parameters false do not allow"
            )
        return self.meta.weights()[0]

    def _masked_lm(self, batch: Batch, rng: Tensor) -> tuple[MaskedLMOutput, Tensor]:
        """Masks a copy of the texts, and predicts its masked tokens; the targets [M] too."""
        assert self.model.mlm_head is not None
        if self.perturbation.device != batch.input_ids.device:
            self.perturbation = self.perturbation.to(batch.input_ids.device)
        masks = masks_of(batch)
        return masked_lm_pass(
            lambda masked: self.model.encode_masked(
                masked, batch.input_ids, masks.offsets, masks.max_masked, **batch.texts()
            ),
            self.model.mlm_head,
            batch.input_ids,
            masks,
            rng,
            self.perturbation,
        )
