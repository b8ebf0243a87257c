"""The small BERT that is pretrained, and its masked-LM loss.

Masks are drawn as in Mask-tuning, and the head computes the masked positions only.

Shapes: B windows, L tokens, M masked positions, H width.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from masktuning.data.collator import MaskPlan
from masktuning.demo.pretrain.corpus import Windows
from masktuning.methods.perturbation import MaskBatch, masked_lm_pass, perturbation_from
from masktuning.ops import MaskedLMOutput, MaskedTokens, masked_lm_head

_EVALUATION_SEED = 2307_10457  # the same masks in the evaluations of all runs
_WINDOWS_AT_ONCE = 32
_SPREAD = 0.05  # BERT's 0.02 is for 768 units; a narrower layer sums over fewer


def new_model(arguments: Any, vocab_size: int, device: torch.device) -> Any:
    """A BertForMaskedLM of the sizes in `arguments`, with random weights from their seed."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.max_length,
        initializer_range=_SPREAD,
    )
    # On the CPU in bf16 eager attention is faster: the fused one has a slow backward pass.
    config._attn_implementation = "eager" if device.type == "cpu" else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model: Any = BertForMaskedLM(config)
    return model.to(device)


def correct_predictions(output: MaskedLMOutput, targets: Tensor) -> Tensor:
    """[M] bool, whether each prediction is the target [M].

    A row of NaN logits predicts the original token by convention, which does not count.
    """
    return (output.tokens == targets) & output.losses.detach().isfinite()


class MaskedLM:
    """A stock BertForMaskedLM whose decoder is computed for the masked positions only."""

    def __init__(self, model: Any, tokenizer: Any, mask_rate: float, precision: str) -> None:
        self.model = model.eval()  # without dropout: a few epochs do not overfit
        self.device = model.device
        self.bf16 = precision == "bf16"
        self.plan = MaskPlan(tokenizer, mask_rate)
        self.perturbations = {
            corruption: perturbation_from(tokenizer, len(tokenizer), corruption).to(self.device)
            for corruption in ("mask", "80-10-10")
        }

    def __call__(
        self, windows_BL: NDArray, ids_B: NDArray, seed: int, epoch: int, corruption: str = "mask"
    ) -> tuple[MaskedLMOutput, Tensor]:
        """Losses and predictions of the masked positions, and their targets [M].

        `windows_BL` are token ids, `ids_B` the windows' numbers; the masks are a function of
        these, the seed and the epoch. `corruption` says what masked positions show.
        """
        input_ids = torch.from_numpy(windows_BL)
        maskable, offsets = self.plan(input_ids)
        masks = MaskBatch(
            maskable.to(self.device),
            torch.from_numpy(ids_B).to(self.device),
            offsets.to(self.device),
            int(offsets[-1]),
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return masked_lm_pass(
                self._encode,
                self._head,
                input_ids.to(self.device),
                masks,
                torch.tensor([seed, epoch], device=self.device),
                self.perturbations[corruption],
            )

    def _encode(self, masked: MaskedTokens) -> Tensor:
        states_BLH = self.model.bert(input_ids=masked.input_ids).last_hidden_state
        return states_BLH.flatten(0, 1).index_select(0, masked.positions)

    def _head(self, hidden_MH: Tensor, *rows: Any) -> MaskedLMOutput:
        predictions = self.model.cls.predictions
        decoder = predictions.decoder
        return masked_lm_head(predictions.transform(hidden_MH), decoder.weight, decoder.bias, *rows)

    @torch.no_grad()
    def evaluate(self, windows: Windows, limit: int, unigram: int) -> dict[str, float]:
        """Loss and accuracy on at most `limit` windows, every masked token shown as [MASK].

        `unigram` is the id of the most frequent token, for the accuracy of always predicting it.
        """
        losses, correct, frequent = [], [], []
        ids = windows.evenly(limit)
        for ids_B in np.array_split(ids, math.ceil(len(ids) / _WINDOWS_AT_ONCE)):
            output, targets = self(windows.read(ids_B), ids_B, _EVALUATION_SEED, 0)
            losses.append(output.losses.double().cpu())
            correct.append(correct_predictions(output, targets).cpu())
            frequent.append((targets == unigram).cpu())
        loss = float(torch.cat(losses).mean())
        return {
            "masked_tokens": sum(map(len, losses)),
            "loss": loss,
            "perplexity": math.exp(loss),
            "accuracy": float(torch.cat(correct).double().mean()),
            "unigram_accuracy": float(torch.cat(frequent).double().mean()),
        }
