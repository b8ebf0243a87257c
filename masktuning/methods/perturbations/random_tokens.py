"""A control for Mask-tuning: random tokens in the places of the masked ones.

Shapes: B examples, L tokens, M masked positions, N token ids.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.perturbation import masks_of, plain_ids
from masktuning.methods.perturbations.base import Perturbed, Strategy
from masktuning.ops import MaskedLMOutput, sample_masks
from masktuning.ops.philox import draw_words

STREAM_RANDOM_TOKEN = 60  # of random numbers, for the token that replaces a masked one


class RandomTokens(Strategy):
    """Each masked token is replaced by one that is drawn uniformly from the vocabulary.

    The tokens that are masked are those of the masked LM's pass, and special tokens are not drawn.
    It tells whether it is the predictions that help, or any noise of that amount. With alpha = 0
    the masked LM is not evaluated at all, and its loss is logged as 0.

    Equivalent to::

        x_hat[masked] = plain_ids[torch.randint(len(plain_ids), (M,))]
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, options: Any, name: str
    ) -> None:
        super().__init__(tokenizer, vocab_size, options, name)
        self.ids_N = torch.tensor(plain_ids(tokenizer, vocab_size))

    def __getstate__(self) -> dict[str, Any]:
        """Its tensor leaves the GPU where it is pickled, for the processes of a data loader."""
        return {**vars(self), "ids_N": self.ids_N.cpu()}

    def perturb(self, batch: Batch, rng: Tensor, output: MaskedLMOutput | None) -> Perturbed:
        """See `Strategy.perturb`."""
        ids_BL = batch.input_ids
        self.ids_N = self.ids_N.to(ids_BL.device)
        masks = masks_of(batch)
        # Which tokens are masked does not depend on what they are shown as.
        positions_M = sample_masks(
            ids_BL,
            masks.maskable,
            masks.example_ids,
            masks.offsets,
            rng,
            masks.num_masked,
            self.tokenizer.mask_token_id,
        ).positions
        # One more flag at the front takes the surplus positions, which are -1.
        flags = torch.zeros(ids_BL.numel() + 1, dtype=torch.bool, device=ids_BL.device)
        masked_BL = flags.index_fill(0, positions_M + 1, True)[1:].view_as(ids_BL)
        t_L = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        draws_BL = draw_words(rng, t_L, batch.example_ids[:, None], STREAM_RANDOM_TOKEN)[0]
        drawn_BL = self.ids_N[(draws_BL * len(self.ids_N)) >> 32]
        return Perturbed(torch.where(masked_BL, drawn_BL, ids_BL), **batch.texts())
