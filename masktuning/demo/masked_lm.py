"""The small BERT that is pretrained, and its masked-LM loss.

It is pass A of Mask-tuning on its own: the package's masks, and the head on masked rows only.

Shapes: B windows, L tokens, M masked positions, H width, F = H / 2 frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from masktuning.collator import MaskTuningCollator
from masktuning.demo.corpus import Windows
from masktuning.objective import MaskBatch, masked_lm_pass, perturbation_from
from masktuning.ops import MaskedLMOutput, masked_lm_head

_EVALUATION_SEED = 2307_10457  # apart from every training seed, so that figures compare
_WINDOWS_AT_ONCE = 32
_INITIAL_SPREAD = 0.05  # BERT's 0.02 belongs to 768 units; a narrow layer sums over fewer


def new_model(arguments: Any, vocab_size: int) -> Any:
    """Random weights from the seed, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.max_length,
        initializer_range=_INITIAL_SPREAD,
    )
    # In bf16 on the CPU the fused attention's backward pass took 38 % of a step; eager is faster.
    config._attn_implementation = "eager" if device.type == "cpu" else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model: Any = BertForMaskedLM(config)
    _set_positions(model.bert.embeddings.position_embeddings.weight.detach())
    return model.to(device)


def _set_positions(weight_LH: Tensor) -> None:
    """Sinusoids (arXiv 1706.03762) as large as the words' embeddings, to be trained further."""
    L, H = weight_LH.shape
    scale = 2**0.5 * weight_LH.std()
    angle_LF = torch.arange(L)[:, None] * 10000.0 ** (-torch.arange(0, H, 2) / H)
    weight_LH[:, : angle_LF.shape[1]] = scale * angle_LF.sin()
    weight_LH[:, angle_LF.shape[1] :] = scale * angle_LF.cos()[:, : H // 2]


class MaskedLM:
    """A stock BertForMaskedLM with its decoder run on the masked rows only."""

    def __init__(self, model: Any, tokenizer: Any, mask_rate: float, precision: str) -> None:
        self.model = model.eval()  # no dropout: so few passes over the text do not overfit
        self.device = model.device
        self.bf16 = precision == "bf16"
        self.collator = MaskTuningCollator(tokenizer, mask_rate)
        self.perturbations = {
            corruption: perturbation_from(tokenizer, len(tokenizer), corruption).to(self.device)
            for corruption in ("mask", "80-10-10")
        }

    def __call__(
        self, windows_BL: NDArray, ids_B: NDArray, seed: int, visit: int, corruption: str = "mask"
    ) -> tuple[MaskedLMOutput, Tensor]:
        """The masked rows' losses and predictions, and their targets [M]."""
        input_ids = torch.from_numpy(windows_BL)
        maskable = ~torch.isin(input_ids, self.collator.special_ids)
        offsets = self.collator.offsets(maskable)
        masks = MaskBatch(
            maskable.to(self.device),
            torch.from_numpy(ids_B).to(self.device),
            offsets.to(self.device),
            int(offsets[-1]),
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return masked_lm_pass(
                lambda shown: self.model.bert(input_ids=shown).last_hidden_state,
                self._head,
                input_ids.to(self.device),
                masks,
                torch.tensor([seed, visit], device=self.device),
                self.perturbations[corruption],
            )

    def _head(self, hidden_MH: Tensor, *rows: Any) -> MaskedLMOutput:
        predictions = self.model.cls.predictions
        decoder = predictions.decoder
        return masked_lm_head(predictions.transform(hidden_MH), decoder.weight, decoder.bias, *rows)

    @torch.no_grad()
    def evaluate(self, windows: Windows, limit: int, unigram: int) -> dict[str, float]:
        """Loss and accuracy on held-out windows, every masked token shown as [MASK]."""
        losses, hits, guesses = [], [], []
        chosen = windows.evenly(limit)
        for ids_B in np.array_split(chosen, math.ceil(len(chosen) / _WINDOWS_AT_ONCE)):
            output, targets = self(windows.read(ids_B), ids_B, _EVALUATION_SEED, 0)
            losses.append(output.losses.double().cpu())
            hits.append((output.tokens == targets).cpu())
            guesses.append((targets == unigram).cpu())
        loss = float(torch.cat(losses).mean())
        return {
            "masked_tokens": sum(map(len, losses)),
            "loss": loss,
            "perplexity": math.exp(loss),
            "accuracy": float(torch.cat(hits).double().mean()),
            "unigram_accuracy": float(torch.cat(guesses).double().mean()),
        }
