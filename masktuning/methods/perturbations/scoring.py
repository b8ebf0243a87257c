"""What attacks on words ask of models: a victim's labels, a masked LM's words, and similarity.

Shapes: N texts, L tokens, V vocabulary, C classes, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.config.errors import UsageError
from masktuning.methods.perturbations.words import Text
from masktuning.modeling.shared_encoder import MaskTuningModel

BATCH = 64
VICTIM = "victim"  # the stage that trains it


class Scorer:
    """Evaluates texts in batches, with models in evaluation mode.

    Args:
        model: the starting model, whose masked LM fills masks and whose encoder compares texts.
        victim: the trained classifier whose label is to change.
        tokenizer: the tokenizer of both.
        typed: whether the encoder takes token types.
    """

    def __init__(
        self,
        model: MaskTuningModel,
        victim: MaskTuningModel,
        tokenizer: PreTrainedTokenizerBase,
        typed: bool,
    ) -> None:
        self.model, self.victim = model, victim
        self.tokenizer, self.typed = tokenizer, typed
        self.device = next(model.parameters()).device

    def probabilities(self, texts: Sequence[Text]) -> Tensor:
        """[N, C], the victim's probabilities of the labels."""
        return self._batched(texts, lambda *batch: self.victim(*batch).logits.softmax(-1))

    def predicted(self, texts: Sequence[Text]) -> Tensor:
        """[N, V], the masked LM's probabilities at the one mask of each text."""

        def at_mask(ids_BL: Tensor, *texts: Tensor | None) -> Tensor:
            assert self.model.mlm_head is not None
            hidden_BLH = self.model.encode(ids_BL, ids_BL, *texts)
            masked_BL = ids_BL == self.tokenizer.mask_token_id
            return self.model.mlm_head.logits(hidden_BLH[masked_BL]).softmax(-1)

        return self._batched(texts, at_mask)

    def similarity(self, before: Sequence[Text], after: Sequence[Text]) -> Tensor:
        """[N], the cosines of the encoder's mean states of two texts each."""
        return F.cosine_similarity(self._mean_states(before), self._mean_states(after))

    def _mean_states(self, texts: Sequence[Text]) -> Tensor:
        """[N, H]; equal texts are encoded once."""

        def mean(ids_BL: Tensor, attended_BL: Tensor, types_BL: Tensor | None) -> Tensor:
            hidden_BLH = self.model.encode(ids_BL, ids_BL, attended_BL, types_BL)
            weights_BL1 = attended_BL[..., None].to(hidden_BLH.dtype)
            return (hidden_BLH * weights_BL1).sum(1) / weights_BL1.sum(1)

        places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        return self._batched([*places], mean)[[places[text] for text in texts]]

    def _batched(self, texts: Sequence[Text], call: Callable[..., Tensor]) -> Tensor:
        """The rows that `call` gives for (ids, attention mask, token types) of the texts, on the
        CPU."""
        parts = []
        for start in range(0, len(texts), BATCH):
            part = texts[start : start + BATCH]
            ids_BL = self._padded([text.ids() for text in part], self.tokenizer.pad_token_id)
            types_BL = None
            if self.typed:
                pad_type = self.tokenizer.pad_token_type_id
                types_BL = self._padded([text.token_types() for text in part], pad_type)
            attended_BL = (ids_BL != self.tokenizer.pad_token_id).long()
            parts.append(call(ids_BL, attended_BL, types_BL).float().cpu())
        return torch.cat(parts)

    def _padded(self, rows: list[list[int]], value: int) -> Tensor:
        width = max(map(len, rows))
        padded = [row + [value] * (width - len(row)) for row in rows]
        return torch.tensor(padded, device=self.device)


def load_victim(cache: Path) -> MaskTuningModel:
    """The classifier of the stage `victim`.

    Raises:
        UsageError: if it has not been trained.
    """
    folder = cache / VICTIM
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: no trained classifier, which this perturbation attacks: python -m "
            "masktuning.train trains it first; otherwise save one there with --method finetuning"
        )
    return MaskTuningModel.from_pretrained(folder, mlm_head=False)
