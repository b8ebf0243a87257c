"""Sequential training: an ablation of arXiv 2307.10457, section VI.

Shapes: B examples, L tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from masktuning.data.batch import Batch
from masktuning.data.token_rows import with_token_column
from masktuning.methods.base import Method, Stage
from masktuning.methods.frozen_generator import FrozenGenerator, freeze_mlm_head
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.perturbation_options import PerturbationOptions, same_option
from masktuning.methods.perturbed_texts import MADE_EPOCH, perturbed_texts
from masktuning.methods.step import Step

STAGE = "masked_lm"
COLUMN = "perturbed_ids"


@dataclass
class SequentialOptions(PerturbationOptions):
    """The options of sequential training."""

    _argument_group_name = "sequential"

    min_per_example: int = same_option("min_per_example", default=1)
    mlm_mask_rate: float = field(
        default=0.05,
        metadata={
            "help": "Share of each example's tokens to mask while the masked LM is trained; "
            "mask_rate is that of the perturbed texts."
        },
    )
    redraw: bool = field(
        default=False,
        metadata={
            "help": "Perturb the texts anew in each epoch; otherwise once, before the classifier "
            "is trained. Costs one more forward pass and the memory of a second model."
        },
    )

    def check(self) -> None:
        """Raises ValueError for an option that is out of range, naming it."""
        super().check()
        if not 0 < self.mlm_mask_rate <= 1:
            raise ValueError(
                f"mlm_mask_rate is {self.mlm_mask_rate}: give a share above 0, up to 1"
            )


class Sequential(Method):
    """L = CE(f(x_hat), y) on perturbed texts x_hat only, after the masked LM was trained alone.

    First the encoder and the masked-LM head are trained with the masked-LM loss on the texts of the
    task (the stage `masked_lm`), and that checkpoint perturbs the texts. Then the run starts from
    that checkpoint and trains the classifier f, whose logits are f(x_hat) [B, C], with plain
    cross-entropy on the perturbed texts x_hat [B, L] with the labels y [B] of the original ones;
    the originals are not used. This is the paper's "sequential training" (section VI): the masked
    LM on the original texts first, then fine-tuning on the perturbed ones. By default each text is
    perturbed once, before training; with `redraw` a frozen copy of the stage's model perturbs it
    anew in each epoch, with other masks than the stage's. The stage has the epochs, the learning
    rate and the batch size of the run. It gives the classifier's head no gradient, so that the run
    begins with a head as it was initialised. `python -m masktuning.train` runs the stage; for a
    `MaskTuningTrainer` of your own, train the masked LM with the method `masked_lm` and give it
    that model.

    The mask rate of 5 %, in the stage (`mlm_mask_rate`) and for the perturbed texts (`mask_rate`),
    the most likely token as the substitute and the 3 epochs of each part are the paper's.

    Deviations: none that are known. The paper does not say whether texts are perturbed once or in
    each epoch; once is our reading. Perturbed texts are made without dropout.

    Equivalent to::

        for x in epochs(texts): minimise(F.cross_entropy(mlm(mask(x)).logits[masked], x[masked]))
        x_hat = substitute(mask(texts), mlm(mask(texts)).argmax(-1))
        for x, y in epochs(x_hat, labels): minimise(F.cross_entropy(model(x).logits, y))
    """

    Options = SequentialOptions
    requires = frozenset({"mlm_head"})
    paper = MaskTuning.paper
    when: ClassVar[str] = (
        "Choose it to measure whether the masked LM and the classifier have to be trained at the "
        "same time."
    )
    _generator: FrozenGenerator | None = None

    @classmethod
    def stages(cls, options: SequentialOptions) -> list[Stage]:
        """The training of the masked LM, which measures no set: its classifier is untrained."""
        arguments = {
            "mask_rate": options.mlm_mask_rate,
            "min_per_example": options.min_per_example,
            "corruption": options.corruption,
            "do_eval": False,
            "eval_strategy": "no",
            "load_best_model_at_end": False,
        }
        return [Stage(STAGE, "masked_lm", arguments)]

    @classmethod
    def starts_from(cls, options: SequentialOptions) -> str:
        """The stage's checkpoint."""
        return STAGE

    def configure(self, options: SequentialOptions) -> None:
        """Applies the options; see `Method.configure`."""
        super().configure(options)
        if options.redraw and self._generator is None:
            known = options.of_mask_tuning()
            self._generator = FrozenGenerator(self.model, self.tokenizer, known)
        freeze_mlm_head(self.model)

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds the perturbed texts as a column, unless they are redrawn."""
        if self.options.redraw:
            return train
        made = perturbed_texts(self, self.options.of_mask_tuning(), train, cache)
        return with_token_column(train, COLUMN, made)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the perturbed texts [B, L], or which tokens may be masked."""
        if self._generator is not None:
            return self._generator.collate(batch, rows)
        left = self.tokenizer.padding_side == "left"
        perturbed_BL = batch.input_ids.clone()
        for ids_L, row in zip(perturbed_BL, rows, strict=True):
            new = torch.as_tensor(row[COLUMN])
            ids_L[len(ids_L) - len(new) if left else 0 :][: len(new)] = new
        batch.columns[COLUMN] = perturbed_BL
        return batch

    def losses(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """One loss, the cross-entropy on the perturbed texts."""
        ids_BL = self.perturb(batch, step.rng)
        same_B = (ids_BL == batch.input_ids).all(1)
        step.log(same_text_share=step.mean(same_B.float() * (batch.labels != -100)))
        logits_BC = self.model(ids_BL, **batch.texts()).logits
        yield step.cross_entropy(logits_BC, batch.labels)

    def perturb(self, batch: Batch, rng: Tensor) -> Tensor:
        """The perturbed texts [B, L], which were made in advance unless they are redrawn."""
        if self._generator is not None:
            # Epochs that the stage did not reach, so that its masks are not drawn again.
            return self._generator.perturb(batch, rng + rng.new_tensor([0, MADE_EPOCH]))
        return batch.columns[COLUMN]
