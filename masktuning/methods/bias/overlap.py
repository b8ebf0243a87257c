"""What two texts have in common: the features of bias-only models for sentence pairs.

Shapes: N pairs, F features, H width of the embeddings, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.methods.bias.segments import Segments

NAMES = (
    "h_is_subseq",
    "all_in_p",
    "percent_in_p",
    "log_len_diff",
    "average_sim",
    "min_sim",
    "min2_sim",
)
"""The features of `overlap_features`, in their order."""


class Words:
    """Turns token ids into word pieces as text.

    Token ids that differ only in case or in a leading space give the same piece.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.text_of: dict[int, str] = {}
        """What the token ids that were asked for decode to, in lower case."""

    def __call__(self, ids: Iterable[int]) -> list[str]:
        """The word pieces of token ids, in lower case and without spaces."""
        known = self.text_of
        found = []
        for token in ids:
            if token not in known:
                known[token] = str(self.tokenizer.decode([token])).strip().lower()
            found.append(known[token])
        return found


def overlap_features(
    pairs: Sequence[Segments], words: Words, embeddings: Tensor, both_orders: bool
) -> np.ndarray:
    """[N, 7] float64, the features `NAMES` of a premise P (the first text) and a hypothesis H.

    h_is_subseq: whether H is a contiguous part of P; all_in_p: whether every word piece of H is in
    P; percent_in_p: the share of H's word pieces that are; log_len_diff: ln(max(|P| - |H|, 1)).
    With s_h the largest cosine similarity of the piece h of H with one of P, in the embeddings
    [V, H]: average_sim is the mean of s_h, min_sim its smallest and min2_sim its second smallest
    value. What is missing in short texts is 0.

    Args:
        pairs: the N pairs.
        words: what makes word pieces of token ids.
        embeddings: [V, H], one vector per token id.
        both_orders: whether to average the features over both orders of the texts, for tasks in
            which the order means nothing.
    """
    unit_VH = torch.nn.functional.normalize(embeddings.detach().float().cpu(), dim=-1).numpy()
    found = [_features(pair, words, unit_VH) for pair in pairs]
    if both_orders:
        other = (Segments(pair.second, pair.first) for pair in pairs)
        swapped = [_features(pair, words, unit_VH) for pair in other]
        return (np.array(found) + np.array(swapped)) / 2
    return np.array(found)


def is_contiguous_part(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether `part`, which is not empty, occurs in `whole` without gaps."""
    n = len(part)
    return any(whole[i : i + n] == part for i in range(len(whole) - n + 1))


def _features(pair: Segments, words: Words, unit_VH: np.ndarray) -> list[float]:
    if not pair.second:
        return [0.0] * len(NAMES)
    p, h = words(pair.first), words(pair.second)
    known = set(p)
    in_p = [one in known for one in h]
    difference = math.log(max(len(p) - len(h), 1))
    exact = [float(is_contiguous_part(h, p)), float(all(in_p)), sum(in_p) / len(h), difference]
    if not pair.first:
        return [*exact, 0.0, 0.0, 0.0]
    best = (unit_VH[pair.second] @ unit_VH[pair.first].T).max(1).astype(np.float64)
    lowest = np.sort(best)[:2].tolist()
    return [*exact, float(best.mean()), lowest[0], lowest[1] if len(lowest) > 1 else 0.0]
