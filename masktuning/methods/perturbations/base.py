"""The interface of Mask-tuning's perturbation strategies: from a batch to the texts of pass B.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.base import Stage
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import MaskedLMOutput


class Perturbed(NamedTuple):
    """The texts that are classified in place of a batch's own, padded to the same L."""

    input_ids: Tensor
    """[B, L] int64."""
    attention_mask: Tensor | None
    """[B, L], or None where neither these texts nor the original ones are padded."""
    token_type_ids: Tensor | None
    """[B, L], for families that have them."""

    def texts(self) -> dict[str, Tensor | None]:
        """The keyword arguments that the encoder takes alongside the token ids."""
        return {"attention_mask": self.attention_mask, "token_type_ids": self.token_type_ids}


class Strategy:
    """How Mask-tuning perturbs texts; one file per strategy derives from it.

    A strategy keeps no model, since it is pickled with the collator for the processes of a data
    loader. Its auxiliary loss is always that of the masked LM, which Mask-tuning computes itself.
    """

    seed: int = 0
    """The seed of the run, for what `prepare` draws; Mask-tuning sets it before."""
    predicts: ClassVar[bool] = False
    """Whether `perturb` needs the masked LM's predictions for the batch, whatever alpha is."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, options: Any, name: str
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.options = options
        self.name = name

    @classmethod
    def stages(cls, options: Any) -> list[Stage]:
        """The earlier trainings that the strategy needs; see `Method.stages`."""
        return []

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """The training set with the strategy's columns; see `Method.prepare`."""
        return train

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """The batch with what the strategy adds, before its masks are planned."""
        return batch

    def perturb(self, batch: Batch, rng: Tensor, output: MaskedLMOutput | None) -> Perturbed:
        """The perturbed texts.

        Args:
            batch: the original texts.
            rng: [2] int64, the seed and the epoch.
            output: the masked LM's predictions, which are given at least where `predicts` says so.
        """
        raise NotImplementedError
