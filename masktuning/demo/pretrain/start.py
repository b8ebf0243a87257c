"""Initial weights in closed form: word vectors, positions, and attention to neighbouring tokens.

Shapes: V vocabulary, C context words, L tokens, H width, F = H / 2 frequencies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EMBEDDING_SPREAD = 0.08
_SHARPNESS = 1.4  # of the first layer's attention to its offset
_VALUE_GAIN = 1.5  # how strongly the first layer adds what it attends to
_NEIGHBOURS = ((1, 1.0), (2, 0.5))  # distance and weight
_CONTEXTS = 8192
_TOKENS_AT_ONCE = 2_000_000
_SMOOTHING = 0.75  # raises the share of rare context words, as in word2vec


@torch.no_grad()
def initialise(
    model: Any, tokens: NDArray[np.uint16], counts_V: NDArray[np.int64], seed: int
) -> None:
    """Sets weights of a BertForMaskedLM that a short run would spend most of its steps learning.

    From random weights the loss stays at that of word frequencies for long: the mean of a whole
    window says nothing about a single word, and while Adam learns the frequencies it moves all
    embeddings in the same direction. So the output bias is set to the frequencies, the embeddings
    to word vectors, and the first layer's heads to attend to neighbouring tokens.

    `tokens` is the training text, `counts_V` how often each token occurs in it.
    """
    smoothed_V = torch.from_numpy(counts_V) + 1.0
    model.cls.predictions.bias.copy_((smoothed_V / smoothed_V.sum()).log())
    embeddings = model.bert.embeddings
    position_LH = embeddings.position_embeddings.weight
    L, H = position_LH.shape
    vectors_VH = word_vectors(tokens, counts_V, H, seed)
    embeddings.word_embeddings.weight.copy_(_EMBEDDING_SPREAD * vectors_VH)
    frequency_F = 10000.0 ** (-torch.arange(0, H, 2) / H)
    angle_LF = torch.arange(L)[:, None] * frequency_F
    sinusoids_LH = torch.stack([angle_LF.sin(), angle_LF.cos()], 2).flatten(1)[:, :H]
    position_LH.copy_(_EMBEDDING_SPREAD * 2**0.5 * sinusoids_LH)
    _attend_to_neighbours(model.bert.encoder.layer[0].attention, frequency_F, seed)


def _attend_to_neighbours(attention: Any, frequency_F: Tensor, seed: int) -> None:
    """Sets a layer to attend to neighbouring tokens: head h to offset 0, -1, 1, -2, 2, ..."""
    H = attention.self.value.in_features
    generator = torch.Generator().manual_seed(seed)
    rotation_HH = torch.linalg.qr(torch.randn(H, H, generator=generator))[0]
    attention.self.value.weight.copy_(rotation_HH)
    attention.output.dense.weight.copy_(_VALUE_GAIN * rotation_HH.T)
    size = attention.self.attention_head_size // 2 * 2
    for h in range(attention.self.num_attention_heads):
        # Keys read the position's sinusoids as they are and queries read them rotated by the
        # offset, so that their product is largest at that offset.
        offset = (h + 1) // 2 * (-1) ** h
        angle_F = offset * frequency_F[: size // 2]
        turns = torch.stack([angle_F.cos(), angle_F.sin(), -angle_F.sin(), angle_F.cos()], 1)
        first = h * attention.self.attention_head_size
        rows = slice(first, first + size)
        for projection, sinusoid in (
            (attention.self.key, torch.eye(size)),
            (attention.self.query, torch.block_diag(*turns.view(-1, 2, 2))),
        ):
            projection.weight[rows] = 0
            projection.weight[rows, :size] = _SHARPNESS * sinusoid


@torch.no_grad()
def word_vectors(
    tokens: NDArray[np.uint16], counts_V: NDArray[np.int64], width: int, seed: int
) -> Tensor:
    """[V, H] float32 vectors of H = `width`, similar for words with similar neighbours.

    They are a truncated SVD of the positive pointwise mutual information between words and their
    left and right neighbours (Levy and Goldberg 2014), of length sqrt(H) at most. Words that do
    not occur get random vectors.
    """
    V = len(counts_V)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vectors_VH = torch.randn(V, width)
        rotation_HH = torch.linalg.qr(torch.randn(width, width))[0]
        rank = min(width, V)
        left_VR, scale_R, _ = torch.svd_lowrank(_information(tokens, counts_V), q=rank, niter=3)
    # Rotated at random, so that every attention head's share of the units carries as much.
    found_VH = (left_VR * scale_R.sqrt()) @ rotation_HH[:rank]
    norms_V1 = found_VH.norm(dim=1, keepdim=True)
    # Rare words have short vectors; scaled to full length, these would be mostly noise.
    found_VH *= width**0.5 / norms_V1.clamp(min=0.3 * float(norms_V1.median()) + 1e-12)
    counted_V1 = torch.from_numpy(counts_V > 0)[:, None]
    return torch.where(counted_V1, found_VH, vectors_VH)


def _information(tokens: NDArray[np.uint16], counts_V: NDArray[np.int64]) -> Tensor:
    """[V, 2 C] positive pointwise mutual information with C left and C right context words."""
    V = len(counts_V)
    C = min(V, _CONTEXTS)
    column_V = np.full(V, C)  # the last column is for words that are not context words
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
    """[V, C] weighted counts of the words after each word (direction 1) or before it (-1)."""
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
