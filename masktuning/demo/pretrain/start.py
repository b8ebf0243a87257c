"""Word vectors from counts of neighbours, in closed form: where the embeddings start.

Shapes: V vocabulary, C context words, H width.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_NEIGHBOURS = ((1, 1.0), (2, 0.5))  # distance and weight
_CONTEXTS = 8192
_TOKENS_AT_ONCE = 2_000_000
_SMOOTHING = 0.75  # lifts the share of rare contexts, as word2vec does


@torch.no_grad()
def word_vectors(
    tokens: NDArray[np.uint16], counts_V: NDArray[np.int64], width: int, seed: int
) -> Tensor:
    """[V, H] float32 vectors, alike for like words; of length sqrt(H) at most for counted ones.

    A truncated SVD of the positive pointwise mutual information between words and their left and
    right neighbours (Levy and Goldberg 2014). Words of count 0 get random vectors.
    """
    V = len(counts_V)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vectors_VH = torch.randn(V, width)
        turn_HH = torch.linalg.qr(torch.randn(width, width))[0]
        rank = min(width, V)
        left_VR, scale_R, _ = torch.svd_lowrank(_information(tokens, counts_V), q=rank, niter=3)
    # Turned at random, so that every attention head finds as much in its share of the units.
    found_VH = (left_VR * scale_R.sqrt()) @ turn_HH[:rank]
    norms_V1 = found_VH.norm(dim=1, keepdim=True)
    # The vector of a rare word is short; made as long as others it would be mostly noise.
    found_VH *= width**0.5 / norms_V1.clamp(min=0.3 * float(norms_V1.median()) + 1e-12)
    counted_V1 = torch.from_numpy(counts_V > 0)[:, None]
    return torch.where(counted_V1, found_VH, vectors_VH)


def _information(tokens: NDArray[np.uint16], counts_V: NDArray[np.int64]) -> Tensor:
    """[V, 2 C] positive pointwise mutual information with left and with right neighbours."""
    V = len(counts_V)
    C = min(V, _CONTEXTS)
    column_V = np.full(V, C)  # the last column takes what is no context, and is dropped
    column_V[np.argsort(-counts_V, kind="stable")[:C]] = np.arange(C)
    column_V[counts_V == 0] = C
    sides = [_count(tokens, column_V, C, direction) for direction in (-1, 1)]
    joint_VC = torch.from_numpy(np.concatenate(sides, axis=1))
    joint_VC[torch.from_numpy(counts_V == 0)] = 0
    total = joint_VC.sum()
    of_word_V1 = joint_VC.sum(1, keepdim=True).clamp(min=1e-9)
    of_context_C = joint_VC.sum(0, keepdim=True).clamp(min=1e-9) ** _SMOOTHING
    of_context_C *= total / of_context_C.sum()
    return (joint_VC * total / (of_word_V1 * of_context_C)).clamp(min=1.0).log()


def _count(
    tokens: NDArray[np.uint16], column_V: NDArray[np.int64], C: int, direction: int
) -> NDArray[np.float32]:
    """[V, C] weighted counts of the neighbours after each word (direction 1) or before it (-1)."""
    V = len(column_V)
    counts = np.zeros(V * (C + 1), np.float32)
    for distance, weight in _NEIGHBOURS:
        for start in range(0, len(tokens) - distance, _TOKENS_AT_ONCE):
            stretch = tokens[start : start + _TOKENS_AT_ONCE + distance].astype(np.int64)
            first, second = stretch[:-distance], stretch[distance:]
            words, others = (first, second) if direction == 1 else (second, first)
            cells, number = np.unique(words * (C + 1) + column_V[others], return_counts=True)
            counts[cells] += np.float32(weight) * number
    return counts.reshape(V, C + 1)[:, :C]
