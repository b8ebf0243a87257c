"""A biaffine dependency parser on the states of an encoder.

Shapes: B sentences, L tokens, W words of the longest sentence, S = W + 1 possible heads (the root
first), R relations, H width of the hidden states.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masktuning.ops.checks import IGNORE_INDEX


class BiaffineParser(nn.Module):
    """Scores of each word's possible heads, and of its relations to one of them.

    Args:
        width: H, the width of the words' vectors.
        relations: R, the number of relations.

    All weights are zero at first.
    """

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.arcs = nn.Parameter(torch.zeros(width + 1, width))
        self.relations = nn.Parameter(torch.zeros(relations, width + 1, width + 1))

    def arc_scores(self, words_BWH: Tensor, heads_BSH: Tensor, is_word_BW: Tensor) -> Tensor:
        """[B, W, S], s(d, h) = [x_d; 1] W x_h; -inf for heads beyond the sentence's last word."""
        scores_BWS = with_one(words_BWH) @ self.arcs @ heads_BSH.transpose(1, 2)
        is_head_BS = F.pad(is_word_BW, (1, 0), value=True)
        return scores_BWS.masked_fill(~is_head_BS[:, None], -torch.inf)

    def relation_scores(self, words_BWH: Tensor, heads_BWH: Tensor) -> Tensor:
        """[B, W, R], r(d, h, l) = [x_d; 1] W_l [x_h; 1], for one head of each word."""
        return torch.einsum(
            "bwi,rij,bwj->bwr", with_one(words_BWH), self.relations, with_one(heads_BWH)
        )


def with_one(vectors: Tensor) -> Tensor:
    """The vectors [..., H] with a one at their end, [..., H + 1]."""
    return F.pad(vectors, (0, 1), value=1.0)


def chosen(heads_BSH: Tensor, index_BW: Tensor) -> Tensor:
    """[B, W, H], the vector of one head of each word; an index of -100 gives that of the root."""
    index_BW1 = index_BW.clamp(min=0)[..., None]
    return heads_BSH.gather(1, index_BW1.expand(-1, -1, heads_BSH.shape[-1]))


def means_of_words(states_BLH: Tensor, words_BL: Tensor, count: int) -> Tensor:
    """[B, W, H], the mean of the states of each word's tokens, for W = `count` words.

    `words_BL` has the number of each token's word, from 1, or 0 for a token of no word. A word
    without tokens, beyond the end of a sentence, gets zeros.
    """
    numbers_W = torch.arange(1, count + 1, device=words_BL.device)
    belongs_BWL = (words_BL[:, None] == numbers_W[:, None]).to(states_BLH.dtype)
    return belongs_BWL @ states_BLH / belongs_BWL.sum(-1, keepdim=True).clamp(min=1)


def cross_entropies(scores: Tensor, targets: Tensor) -> Tensor:
    """The sum of the cross-entropies of scores [B, W, K] and targets [B, W]; -100 is ignored."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).flatten(0, 1)
    return F.cross_entropy(scores, targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum")
