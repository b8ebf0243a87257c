"""The small BERT that is pretrained, and its masked-LM loss.

It is pass A of Mask-tuning on its own: the package's masks, and the head on masked rows only.

Shapes: B windows, L tokens, M masked positions, H width, V vocabulary,
F = H / 2 frequencies.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from masktuning.data.collator import MaskTuningCollator
from masktuning.demo.pretrain.corpus import Windows
from masktuning.demo.pretrain.start import word_vectors
from masktuning.modeling.perturbation import MaskBatch, masked_lm_pass, perturbation_from
from masktuning.ops import MaskedLMOutput, masked_lm_head

_EVALUATION_SEED = 2307_10457  # apart from every training seed, so that figures compare
_WINDOWS_AT_ONCE = 32
_SPREAD = 0.05  # BERT's 0.02 belongs to 768 units; a narrow layer sums over fewer
_WORD_SPREAD = 0.08
_SHARPNESS = 1.4
_PASSED_ON = 1.5


def new_model(arguments: Any, vocab_size: int, device: torch.device) -> Any:
    """Random weights from the seed."""
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=arguments.num_heads,
        intermediate_size=4 * arguments.hidden_size,
        max_position_embeddings=arguments.max_length,
        initializer_range=_SPREAD,
    )
    # In bf16 on the CPU the fused attention's backward pass is slow; eager was faster.
    config._attn_implementation = "eager" if device.type == "cpu" else "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(arguments.seed)
        model: Any = BertForMaskedLM(config)
    return model.to(device)


@torch.no_grad()
def give_a_start(
    model: Any, tokens: NDArray[np.uint16], counts_V: NDArray[np.int64], seed: int
) -> None:
    """Sets what would take most of a short run to learn from random weights.

    From those the loss stays at the words' frequencies for long: the mean of a whole window says
    nothing of a word, and Adam, learning frequencies, pushes all embeddings the same way. So:
    the bias holds the frequencies, the embeddings the word vectors, and the first layer's heads
    look at neighbouring tokens and pass them on.
    """
    smoothed_V = torch.from_numpy(counts_V) + 1.0
    model.cls.predictions.bias.copy_((smoothed_V / smoothed_V.sum()).log())
    embeddings = model.bert.embeddings
    position_LH = embeddings.position_embeddings.weight
    L, H = position_LH.shape
    vectors_VH = word_vectors(tokens, counts_V, H, seed)
    embeddings.word_embeddings.weight.copy_(_WORD_SPREAD * vectors_VH)
    frequency_F = 10000.0 ** (-torch.arange(0, H, 2) / H)
    angle_LF = torch.arange(L)[:, None] * frequency_F
    sinusoids_LH = torch.stack([angle_LF.sin(), angle_LF.cos()], 2).flatten(1)[:, :H]
    position_LH.copy_(_WORD_SPREAD * 2**0.5 * sinusoids_LH)
    layer = model.bert.encoder.layer[0].attention
    generator = torch.Generator().manual_seed(seed)
    turn_HH = torch.linalg.qr(torch.randn(H, H, generator=generator))[0]
    layer.self.value.weight.copy_(turn_HH)
    layer.output.dense.weight.copy_(_PASSED_ON * turn_HH.T)
    size = layer.self.attention_head_size // 2 * 2
    for h in range(layer.self.num_attention_heads):
        # A key reads sinusoids as they are, a query turned by the head's offset, so that their
        # product is largest at that distance.
        offset = (h + 1) // 2 * (-1) ** h  # 0, -1, 1, -2, 2 ...
        turn_F = offset * frequency_F[: size // 2]
        turns = torch.stack([turn_F.cos(), turn_F.sin(), -turn_F.sin(), turn_F.cos()], 1)
        first = h * layer.self.attention_head_size
        rows = slice(first, first + size)
        for projection, sinusoid in (
            (layer.self.key, torch.eye(size)),
            (layer.self.query, torch.block_diag(*turns.view(-1, 2, 2))),
        ):
            projection.weight[rows] = 0
            projection.weight[rows, :size] = _SHARPNESS * sinusoid


def hits_of(output: MaskedLMOutput, targets: Tensor) -> Tensor:
    """[M] bool, whether the prediction is right; a row of NaN keeps its token, and is no hit."""
    return (output.tokens == targets) & output.losses.detach().isfinite()


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
        self, windows_BL: NDArray, ids_B: NDArray, seed: int, epoch: int, corruption: str = "mask"
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
                torch.tensor([seed, epoch], device=self.device),
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
            hits.append(hits_of(output, targets).cpu())
            guesses.append((targets == unigram).cpu())
        loss = float(torch.cat(losses).mean())
        return {
            "masked_tokens": sum(map(len, losses)),
            "loss": loss,
            "perplexity": math.exp(loss),
            "accuracy": float(torch.cat(hits).double().mean()),
            "unigram_accuracy": float(torch.cat(guesses).double().mean()),
        }
