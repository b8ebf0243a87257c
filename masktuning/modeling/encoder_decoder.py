"""What the decoder of BART and its relatives reads, and where their classifiers look.

Shapes: B examples, L tokens, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def shifted_right(input_ids: Tensor, config: Any) -> Tensor:
    """[B, L], what the decoder reads: the original text, so that its state j predicts token j."""
    return torch.cat([_decoder_start(input_ids, config), input_ids[:, :-1]], 1)


def states_at_end(hidden_BLH: Tensor, input_ids: Tensor, config: Any) -> Tensor:
    """[B, H], the states that BART's classifier reads: those at the last </s> of each text.

    The stock class selects the states with a boolean mask. This makes the CPU wait for the device,
    which knows how many are selected, and fails unless every text has the same number of </s>. An
    index avoids both.
    """
    t_L = torch.arange(input_ids.shape[1], device=input_ids.device)
    last_B = torch.where(input_ids == config.eos_token_id, t_L, 0).amax(1)
    return hidden_BLH[torch.arange(len(last_B), device=last_B.device), last_B]


def _decoder_start(input_ids: Tensor, config: Any) -> Tensor:
    """[B, 1], what the decoder reads first: a token of its own, or (mBART) the text's last one."""
    if config.decoder_start_token_id is not None:
        return input_ids.new_full((input_ids.shape[0], 1), config.decoder_start_token_id)
    last_B1 = (input_ids != config.pad_token_id).sum(1, keepdim=True) - 1
    return input_ids.gather(1, last_B1)
