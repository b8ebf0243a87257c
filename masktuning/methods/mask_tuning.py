"""Mask-tuning (arXiv 2307.10457): train on texts whose masked tokens were replaced by predictions.

Shapes: B examples (or 2 * B with the originals), L tokens, M masked positions, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from masktuning.data.batch import Batch
from masktuning.data.collator import MaskPlan
from masktuning.methods.alpha_schedule import CONSTANT, scheduled
from masktuning.methods.balance import START, GradientBalance, last_layer_parameters
from masktuning.methods.base import Method, Stage
from masktuning.methods.gate import choose, keeps_label
from masktuning.methods.mask_tuning_options import AUTO, MaskTuningOptions
from masktuning.methods.masks import FAIR, policy_class
from masktuning.methods.masks.base import set_masked
from masktuning.methods.perturbation import (
    masked_lm_pass,
    masks_of,
    nothing_masked,
    perturbation_from,
)
from masktuning.methods.perturbations import strategy_class
from masktuning.methods.perturbations.base import Perturbed
from masktuning.methods.step import Step
from masktuning.modeling.checkpoint import METHOD, part_file
from masktuning.ops import MaskedLMOutput

logger = logging.getLogger(__name__)

_DWARFED = 5  # times the classifier's gradient: from here on a smaller alpha is advised


class MaskTuning(Method):
    """L = alpha * L_MLM + (1 - alpha) * L_FT, Eq. (1), with L_FT on the perturbed texts only.

    Some tokens of each text are masked, the encoder's own masked-LM head predicts them, and the
    text with the predictions in their places is classified, with the label of the original::

        k     = min(n, max(min_per_example, round(mask_rate * n)))    # n: maskable tokens of a text
        L_MLM = mean over the masked tokens t of  -log p(x_t | masked x)
        x'    = x with each masked token replaced by the most probable token there
        L_FT  = mean over the texts of  CE(f(x'), y)

    Padding and special tokens are never masked, and special tokens other than the unknown token
    are never predicted. The predictions carry no gradient, so the two terms share no graph:
    alpha * L_MLM is back-propagated, and its activations are freed, before the second forward
    pass. The gradient is that of the sum, and the peak memory is near that of plain fine-tuning.
    With alpha = 0 the first pass runs without a graph, which is the paper's ablation "without
    integrated loss" (section VI). A batch in which no token is masked needs no first pass, which
    is common for texts of fewer than ten tokens, such as half of the phrases of SST-2.

    The mask rate of 0.05 is the paper's. Its alpha is 0.6 for SST-2, 0.7 for MNLI and 0.8 for QQP,
    with three epochs (`--preset paper`); the default `auto` follows the norms of both gradients,
    since a fixed alpha ruins short runs. A numeric alpha may change over the run
    (`--alpha_schedule`). docs/mask_tuning.md explains alpha and the mask policies.

    The log has `loss_mlm`, `loss_cls`, the norms of their gradients before clipping and
    `mlm_accuracy`, the share of predictions that equal the original token. Where predictions are
    drawn (`top_k` above 1), a drawn token may differ from a correct prediction, and the log has
    `same_token_share` instead. Steps in which no token is masked do not count for the masked LM's
    loss and accuracy.

    Deviations: the paper masks at least one token of each text. The default here is none
    (`--min_per_example 0`), since masks on phrases of a few words cost accuracy.

    `perturbation` names what makes the perturbed examples in place of the masked LM's predictions;
    methods/perturbations/ has one class for each. L_MLM is trained on the same masks with all.

    Equivalent to::

        perturbed, mlm = substitute(mask(x)), F.cross_entropy(mlm_logits_MV, targets_M)
        classification = F.cross_entropy(model(perturbed).logits, y)
        return alpha * mlm + (1 - alpha) * classification
    """

    Options: ClassVar[type] = MaskTuningOptions
    requires = frozenset({"mlm_head"})
    terms: ClassVar[tuple[str, ...]] = ("mlm", "cls")
    _told = False  # that alpha cannot be set from gradients
    paper = (
        'Ghanbarzadeh et al., "Improving the Reusability of Pre-trained Language Models in '
        'Real-world Applications", arXiv 2307.10457'
    )
    when = (
        "The inputs will be worded differently from the training texts, training takes several "
        "epochs, and twice the time of a step is acceptable; compare it with plain fine-tuning."
    )

    def configure(self, options: MaskTuningOptions) -> None:
        """Applies the options; see `Method.configure`."""
        super().configure(options)
        self.plan = MaskPlan(self.tokenizer, options.mask_rate, options.min_per_example)
        if options.alpha != AUTO:
            self.balance: GradientBalance | None = None
        elif getattr(self, "balance", None) is None:  # a resumed run has loaded its own
            self.balance = GradientBalance().to(next(self.model.parameters()).device)
        self.perturbation = perturbation_from(
            self.tokenizer,
            self.model.config.vocab_size,
            options.corruption,
            options.top_k,
            options.temperature,
        )
        size = self.model.config.vocab_size
        self.masks_at_random = options.mask_policy in FAIR
        policy, strategy = options.mask_policy, options.perturbation
        self.mask_policy = policy_class(policy)(self.tokenizer, size, options, policy)
        self.strategy = strategy_class(strategy)(self.tokenizer, size, options, strategy)

    @classmethod
    def stages(cls, options: MaskTuningOptions) -> list[Stage]:
        """What the mask policy and the perturbation need."""
        policy, strategy = policy_class(options.mask_policy), strategy_class(options.perturbation)
        return policy.stages(options) + strategy.stages(options)

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the columns of the mask policy and of the perturbation."""
        self.strategy.seed = self.seed
        train = self.strategy.prepare(self.model, train, cache)
        return self.mask_policy.prepare(self.model, train, cache)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds which tokens may be masked, and how many, unless the user's collator has done so."""
        batch = self.strategy.collate(batch, rows)
        if batch.offsets is None:
            set_masked(batch, *self.plan(batch.input_ids, batch.attention_mask))
        return self.mask_policy.collate(batch, rows)

    def counts(self, batch: Batch) -> dict[str, Tensor | int]:
        """Masked tokens and labels."""
        return {"masked": batch.num_masked, **super().counts(batch)}

    def load_weights(self, folder: str | Path) -> None:
        """See `Method.load_weights`; a checkpoint of a fixed alpha has no norms to go on with."""
        if self.balance is None or part_file(folder, METHOD).is_file():
            super().load_weights(folder)
            return
        logger.warning("%s was trained with a fixed alpha: alpha starts at %s now", folder, START)
        self.balance.norms.zero_()
        self.model.load_weights(folder)

    def watched_parameters(self) -> list[nn.Parameter]:
        """With `alpha="auto"` the parameters of the encoder's last layer."""
        return [] if self.balance is None else last_layer_parameters(self.model.encoder)

    def after_step(self, norms: Mapping[str, Tensor]) -> None:
        """Sets the next step's alpha."""
        if self.balance is not None:
            self.balance.update(norms["mlm"], norms["cls"])

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """alpha * L_MLM of pass A, then (1 - alpha) * L_FT of pass B."""
        alpha = self._alpha(step)
        trains_mlm = self.balance is not None or self.options.alpha > 0
        output = targets_M = None
        # In one joint backward pass DDP and FSDP want a gradient, of 0, for the head as well.
        if self.strategy.predicts or trains_mlm or step.joint:
            with torch.set_grad_enabled(torch.is_grad_enabled() and (trains_mlm or step.joint)):
                if batch.num_masked or step.joint:
                    output, targets_M = self._masked_lm(batch, step.rng)
                else:
                    output, targets_M = nothing_masked(batch.input_ids, self.model)
            losses_M = output.losses
        else:
            losses_M = batch.input_ids.new_zeros(0, dtype=torch.float32)
        yield alpha * step.mean(losses_M, over="masked")
        perturbed, labels, copies = self.strategy.perturb(batch, step.rng, output), batch.labels, 1
        if self.options.gate == "label":
            perturbed = self._gated(perturbed, batch, step)
        ids, texts = perturbed.input_ids, perturbed.texts()
        if self.options.include_original:  # one forward of 2 * B texts, each half with half weight
            ids, labels = torch.cat([ids, batch.input_ids]), torch.cat([labels, labels])
            originals = batch.texts()
            texts = {k: _joined(v, originals[k]) for k, v in texts.items()}
            copies = 2
        logits = self.model(ids, **texts).logits
        # The kernel takes alpha as a number, so a tensor is applied to its result.
        dual = step.joint_loss(losses_M.detach(), logits, labels, 0.0, copies)
        step.log(over="masked", loss_mlm=dual.mlm)
        step.log(loss_cls=dual.classification)
        if output is not None and targets_M is not None:
            self._log(step, output, targets_M)
        if self.balance is not None or self.options.alpha_schedule != CONSTANT:
            step.log(alpha=step.mean((batch.labels != -100) * alpha))
        yield (1 - alpha) * dual.loss

    def perturb(self, batch: Batch, rng: Tensor) -> Tensor:
        """The texts that the perturbation strategy makes of the original ones."""
        output = self._masked_lm(batch, rng)[0] if self.strategy.predicts else None
        return self.strategy.perturb(batch, rng, output).input_ids

    def advice(self, metrics: Mapping[str, float]) -> str:
        """Names a masked-LM term whose gradient dwarfed the classifier's."""
        if self.options.alpha == 1 and self.options.alpha_schedule == CONSTANT:
            return (
                "With --alpha 1 only the masked LM is trained. The classifier has learned nothing, "
                "so its accuracy means nothing."
            )
        mlm, cls = (metrics.get(f"train_grad_norm_{term}", 0.0) for term in self.terms)
        if mlm <= _DWARFED * cls:
            return ""
        return (
            f"On average the masked-LM gradient was {mlm / max(cls, 1e-9):.0f} times the "
            "classifier's, which hardly steered the encoder. A smaller --alpha may serve better."
        )

    def _alpha(self, step: Step) -> float | Tensor:
        """The weight of the masked-LM loss in this step."""
        if self.balance is None:
            return scheduled(self.options.alpha_schedule, self.options.alpha, step.progress)
        if step.joint and not self._told:
            self._told = True
            logger.warning(
                "alpha stays at %s: --alpha auto needs a backward pass for each term, which FSDP, "
                "DeepSpeed and ddp_find_unused_parameters false do not allow",
                START,
            )
        return self.balance.alpha()

    def _gated(self, perturbed: Perturbed, batch: Batch, step: Step) -> Perturbed:
        """The perturbed text where the classifier still predicts its label, else the original."""
        kept_B = keeps_label(self.model, perturbed, batch, every_text=step.joint)
        step.log(gate_kept_share=step.mean((kept_B & (batch.labels != -100)).float()))
        return choose(kept_B, perturbed, batch)

    def _log(self, step: Step, output: MaskedLMOutput, targets_M: Tensor) -> None:
        """Logs the share of masked tokens that were predicted as they were."""
        same_M = (output.tokens == targets_M) & (targets_M >= 0)
        # A drawn token may differ from a correct prediction, so the share is no accuracy then.
        name = "mlm_accuracy" if self.options.top_k == 1 else "same_token_share"
        step.log(over="masked", **{name: step.mean(same_M.float(), over="masked")})

    def _masked_lm(self, batch: Batch, rng: Tensor) -> tuple[MaskedLMOutput, Tensor]:
        """Pass A; see `masked_lm_pass`."""
        assert self.model.mlm_head is not None
        device = batch.input_ids.device
        if self.perturbation.device != device:
            self.perturbation = self.perturbation.to(device)
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


def _joined(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else torch.cat([a, b])
