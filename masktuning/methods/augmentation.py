"""Data augmentation with a masked LM: a comparison of arXiv 2307.10457, section VI.

Shapes: B examples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from masktuning.data.token_rows import followed_by_copies
from masktuning.methods.finetuning import Finetuning
from masktuning.methods.frozen_generator import freeze_mlm_head
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.perturbation_options import PerturbationOptions, same_option
from masktuning.methods.perturbed_texts import perturbed_texts


@dataclass
class AugmentationOptions(PerturbationOptions):
    """The options of data augmentation with a masked LM."""

    _argument_group_name = "augmentation"

    min_per_example: int = same_option("min_per_example", default=1)


class Augmentation(Finetuning):
    """L = CE(f(x), y) on the original examples and on one perturbed copy of each.

    Before training, the checkpoint that the run starts from perturbs every text x of the training
    set once as Mask-tuning does, without dropout: `mask_rate` of its tokens, but at least one, are
    masked and replaced by the most likely prediction. The copy has its original's label y. Then
    the N originals and N copies are shuffled and fine-tuned as usual; f(x) [B, C] are the
    classifier's logits. This is the paper's "data augmentation" (section VI), with its mask rate of
    5 % and its 3 epochs. The share of copies that are identical to their originals is printed;
    they are kept. The copies are kept in the folder `stages/` of the run for a resume.

    An epoch has twice as many steps as one of plain fine-tuning. For the same number of updates,
    give half the epochs: `--num_train_epochs 1.5` in place of 3.

    Deviations: none that are known. The paper does not say how many copies of each example it made
    or whether it left out the identical ones; one copy, and all of them, are our reading.

    Equivalent to::

        with torch.no_grad():
            copies = substitute(mask(texts), vanilla_mlm(mask(texts)).argmax(-1))
        x, y = batch of shuffle([*zip(texts, labels), *zip(copies, labels)])
        return F.cross_entropy(model(x).logits, y)
    """

    Options = AugmentationOptions
    requires = frozenset({"mlm_head"})
    paper = MaskTuning.paper
    when: ClassVar[str] = (
        "Choose it to measure whether perturbed texts help by themselves, made in advance and "
        "added to the original ones."
    )

    def configure(self, options: AugmentationOptions) -> None:
        """Applies the options; see `Method.configure`."""
        super().configure(options)
        freeze_mlm_head(self.model)

    def prepare(self, train: Any, cache: Path) -> Any:
        """Adds a perturbed copy of each row."""
        made = perturbed_texts(self, self.options.of_mask_tuning(), train, cache)
        return followed_by_copies(train, made)
