"""Mask-tuning as one would write it with the stock classes of transformers, to compare with.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

MASK_RATE = 0.05


class NaiveMaskTuning(nn.Module):
    """A stock masked LM and a stock classifier on one encoder; stock Trainer trains it.

    The masked LM scores every position and the loss ignores those that are not masked, as
    transformers' own data collator for masked LMs would have it. With `gathered` only the masked
    positions reach the head. Both losses are back-propagated together, as Trainer does it.
    """

    def __init__(
        self,
        classifier: PreTrainedModel,
        mlm: PreTrainedModel,
        tokenizer: Any,
        alpha: float,
        gathered: bool,
    ) -> None:
        super().__init__()
        setattr(mlm, mlm.base_model_prefix, classifier.base_model)
        mlm.tie_weights()
        self.classifier, self.mlm = classifier, mlm
        self.alpha, self.gathered = alpha, gathered
        self.mask_token_id = tokenizer.mask_token_id
        self.register_buffer("special", torch.tensor(sorted(set(tokenizer.all_special_ids))))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> dict[str, Tensor]:
        texts = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        texts = {name: value for name, value in texts.items() if value is not None}
        masked_BL = self.sample(input_ids)
        shown_BL = input_ids.masked_fill(masked_BL, self.mask_token_id)
        if self.gathered:
            hidden_BLH = self.mlm.base_model(input_ids=shown_BL, **texts)[0]
            logits_MV = self.head(hidden_BLH[masked_BL])
            mlm_loss = F.cross_entropy(logits_MV, input_ids[masked_BL])
        else:
            logits_BLV = self.mlm(input_ids=shown_BL, **texts).logits
            targets_BL = input_ids.masked_fill(~masked_BL, -100)
            mlm_loss = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())
            logits_MV = logits_BLV.detach()[masked_BL]
        # A predicted <pad> or </s> would change RoBERTa's positions or BART's pooling.
        perturbed_BL = input_ids.clone()
        allowed_MV = logits_MV.detach().index_fill(1, self.special, -torch.inf)
        perturbed_BL[masked_BL] = allowed_MV.argmax(1)
        cls_loss = self.classifier(input_ids=perturbed_BL, labels=labels, **texts).loss
        return {"loss": self.alpha * mlm_loss + (1 - self.alpha) * cls_loss}

    def sample(self, input_ids: Tensor) -> Tensor:
        """[B, L] bool: 5 % of the ordinary tokens of each text, at least one."""
        ordinary_BL = ~torch.isin(input_ids, self.special)
        counts_B1 = (MASK_RATE * ordinary_BL.sum(1, keepdim=True)).round().clamp(min=1)
        draws_BL = torch.rand(input_ids.shape, device=input_ids.device)
        ranks_BL = draws_BL.masked_fill(~ordinary_BL, 2.0).argsort(1).argsort(1)
        return ordinary_BL & (ranks_BL < counts_B1)

    def head(self, hidden_MH: Tensor) -> Tensor:
        """[M, V], the logits of some positions; each family names its head differently."""
        mlm: Any = self.mlm
        if mlm.config.model_type == "bert":
            return mlm.cls(hidden_MH)
        if mlm.config.model_type == "roberta":
            return mlm.lm_head(hidden_MH)
        return mlm.lm_head(hidden_MH) + mlm.final_logits_bias
