"""The integer draw among the k largest logits, which is the same on every back end.

Shapes: M rows, V vocabulary, K candidates.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor


def _float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


# 2^f on [0, 1), degree 5, relative error below 2e-7; Horner with separately rounded product and
# sum, so that every back end gets the same float32. The first coefficient makes 2^0 exactly 1.
_EXP2 = tuple(map(_float32, (1.0, 0.6931513, 0.2401645, 0.05579971, 0.00901733, 0.00186699)))
_LOWEST_EXPONENT = -25.0  # 2^-25 of 2^24 rounds to weight 0


def largest(x_MV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and the lowest index that has it, [M] each."""
    # max(dim) does not promise the lowest index among ties; argmax does.
    index_M = x_MV.argmax(1)
    return x_MV.gather(1, index_M[:, None]).squeeze(1), index_M


def draw_among(x_MV: Tensor, k: int, temperature: float, draws_M: Tensor) -> Tensor:
    """One of the k largest of each row, by integer weights and the 32-bit draw of the row."""
    x_MV = x_MV.clone()
    values, indices = [], []
    for _ in range(k):  # value descending, index ascending: what a stable sort would give
        value_M, index_M = largest(x_MV)
        values.append(value_M)
        indices.append(index_M)
        x_MV.scatter_(1, index_M[:, None], -torch.inf)
    weights_MK = draw_weights(torch.stack(values, 1).float(), temperature)
    cumulative_MK = weights_MK.cumsum(1)
    point_M = (draws_M * cumulative_MK[:, -1]) >> 32
    rank_M = (cumulative_MK <= point_M[:, None]).sum(1).clamp(max=k - 1)
    return torch.stack(indices, 1).gather(1, rank_M[:, None]).squeeze(1)


def draw_weights(values_MK: Tensor, temperature: float) -> Tensor:
    """Integers proportional to softmax(values / temperature), 2^24 for the first (largest) column.

    `values_MK` is float32, descending. Integers make the draw the same on every back end.
    """
    y_MK = _product(values_MK - values_MK[:, :1], draw_scale(temperature))
    y_MK = y_MK.nan_to_num(nan=_LOWEST_EXPONENT).clamp(min=_LOWEST_EXPONENT)
    whole_MK = y_MK.floor()
    f_MK = y_MK - whole_MK
    power_MK = torch.full_like(f_MK, _EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        power_MK = _product(power_MK, f_MK) + coefficient
    # 2^24 * power is a whole number, and `whole` is at most 0.
    return (power_MK * 2.0**24).to(torch.int64) >> (-whole_MK).to(torch.int64)


def _product(a: Tensor, b: Tensor | float) -> Tensor:
    """a * b, rounded to float32 whatever follows.

    The product of two float32 numbers is exact in float64. Computed there, it cannot be fused with
    a sum in float32 after it, as a compiler for GPUs does, which would round once instead of twice.
    """
    return (a.double() * (b.double() if isinstance(b, Tensor) else b)).float()


def draw_scale(temperature: float) -> float:
    """log2(e) / temperature, rounded to float32 as every back end uses it."""
    return _float32(math.log2(math.e) / temperature)
