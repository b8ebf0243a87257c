"""Mask-tuning (arXiv 2307.10457): train on texts whose masked tokens were replaced by predictions.

Shapes: B examples (or 2 * B with the originals), L tokens, M masked positions, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.collator import MaskPlan
from masktuning.methods.base import Method
from masktuning.methods.perturbation import MaskBatch, masked_lm_pass, perturbation_from
from masktuning.methods.step import Step
from masktuning.ops import MaskedLMOutput

_DWARFED = 5  # times the classifier's gradient: from here on a smaller alpha is advised


@dataclass
class MaskTuningOptions:
    """The options of Mask-tuning."""

    _argument_group_name = "mask_tuning"

    alpha: float = field(
        default=0.6,
        metadata={"help": "Weight of the masked-LM loss, 0 to 1; 1 - alpha weighs the classifier."},
    )
    mask_rate: float = field(
        default=0.05,
        metadata={"help": "Share of each example's tokens to mask; see min_per_example."},
    )
    min_per_example: int = field(
        default=1,
        metadata={
            "help": "At least so many tokens of each example are masked. With 0, short texts of "
            "which mask_rate is less than half a token stay as they are."
        },
    )
    corruption: str = field(
        default="mask",
        metadata={
            "help": "What a masked token shows: always the mask token, or BERT's 80/10/10.",
            "choices": ["mask", "80-10-10"],
        },
    )
    top_k: int = field(
        default=1,
        metadata={"help": "1 substitutes the most likely token, k draws among the k most likely."},
    )
    temperature: float = field(
        default=1.0,
        metadata={"help": "Divides the logits of that draw; used only with --top_k above 1."},
    )
    include_original: bool = field(
        default=False,
        metadata={"help": "Classify the original text too, with the weight of the perturbed one."},
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}: give a number from 0 to 1")
        if not 0 < self.mask_rate <= 1:
            raise ValueError(f"mask_rate is {self.mask_rate}: give a share above 0, up to 1")
        if self.min_per_example < 0:
            raise ValueError(f"min_per_example is {self.min_per_example}: give 0 or more")
        if not 1 <= self.top_k <= 64:
            raise ValueError(f"top_k is {self.top_k}: give a number from 1 to 64")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}: give a number above 0")


class MaskTuning(Method):
    """L = alpha * L_MLM + (1 - alpha) * L_FT, with L_FT on the perturbed examples only, Eq. (1).

    The predictions carry no gradient, so the two terms share no graph: alpha * L_MLM is
    back-propagated and pass A freed before pass B runs. The gradient is that of the sum, and the
    peak memory is near that of plain fine-tuning. With alpha = 0 pass A runs without a graph: the
    paper's ablation "without integrated loss" (section VI).

    Equivalent to::

        perturbed, mlm = substitute(mask(x)), F.cross_entropy(mlm_logits_MV, targets_M)
        classification = F.cross_entropy(model(perturbed).logits, y)
        return alpha * mlm + (1 - alpha) * classification
    """

    Options = MaskTuningOptions
    requires = frozenset({"mlm_head"})
    terms = ("mlm", "cls")
    paper = (
        'Ghanbarzadeh et al., "Improving the Reusability of Pre-trained Language Models in '
        'Real-world Applications", arXiv 2307.10457'
    )

    def configure(self, options: MaskTuningOptions) -> None:
        """Takes up options; see `Method.configure`."""
        super().configure(options)
        self.plan = MaskPlan(self.tokenizer, options.mask_rate, options.min_per_example)
        self.perturbation = perturbation_from(
            self.tokenizer,
            self.model.config.vocab_size,
            options.corruption,
            options.top_k,
            options.temperature,
        )

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds which tokens may be masked and how many, unless the user's collator has done so."""
        if batch.offsets is None:
            batch.maskable, batch.offsets = self.plan(batch.input_ids, batch.attention_mask)
            batch.num_masked = int(batch.offsets[-1])
            batch.max_masked = int(batch.offsets.diff().max())
        return batch

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Masked tokens and labels."""
        return {"masked": batch.num_masked, **super().counts(batch)}

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """alpha * L_MLM of pass A, then (1 - alpha) * L_FT of pass B."""
        alpha = self.options.alpha
        # In one joint backward pass DDP and FSDP want a gradient, of 0, for the head as well.
        with torch.set_grad_enabled(torch.is_grad_enabled() and (alpha > 0 or step.joint)):
            output, targets_M = self._masked_lm(batch, step.rng)
        yield alpha * step.mean(output.losses, over="masked")
        ids, labels, texts, copies = output.input_ids, batch.labels, batch.texts(), 1
        if self.options.include_original:  # one forward of 2 * B texts, each half with half weight
            ids, labels = torch.cat([ids, batch.input_ids]), torch.cat([labels, labels])
            texts = {k: None if v is None else torch.cat([v, v]) for k, v in texts.items()}
            copies = 2
        logits = self.model(ids, **texts).logits
        dual = step.joint_loss(output.losses.detach(), logits, labels, alpha, copies)
        same_M = (output.tokens == targets_M) & (targets_M >= 0)
        share = step.mean(same_M.float(), over="masked")
        # A drawn token may differ from a correct prediction, so the share is no accuracy then.
        name = "mlm_accuracy" if self.options.top_k == 1 else "same_token_share"
        step.log(loss_mlm=dual.mlm, loss_cls=dual.classification, **{name: share})
        # The joint loss without its first term, which has been yielded above.
        yield dual.loss - (alpha * dual.mlm).detach()

    def perturb(self, batch: Batch, rng: Tensor) -> Tensor:
        """The texts with the masked LM's predictions in the places of the masked tokens."""
        return self._masked_lm(batch, rng)[0].input_ids

    def advice(self, metrics: Mapping[str, float]) -> str:
        """Names a masked-LM term whose gradient dwarfed the classifier's."""
        mlm, cls = (metrics.get(f"train_grad_norm_{term}", 0.0) for term in self.terms)
        if mlm <= _DWARFED * cls:
            return ""
        return (
            f"On average the masked-LM gradient was {mlm / max(cls, 1e-9):.0f} times the "
            "classifier's, which hardly steered the encoder. A smaller --alpha may serve better."
        )

    def _masked_lm(self, batch: Batch, rng: Tensor) -> tuple[MaskedLMOutput, Tensor]:
        """Pass A; see `masked_lm_pass`."""
        assert batch.maskable is not None and batch.offsets is not None
        assert self.model.mlm_head is not None
        device = batch.input_ids.device
        if self.perturbation.device != device:
            self.perturbation = self.perturbation.to(device)
        masks = MaskBatch(
            batch.maskable, batch.example_ids, batch.offsets, batch.num_masked, batch.max_masked
        )
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
