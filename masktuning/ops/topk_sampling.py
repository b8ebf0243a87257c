"""The draw among the k largest logits, in integers so that it is the same on every back end.

Shapes: M rows, V vocabulary, K candidates.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor


def _float32(x: float) -> float:
    return struct.unpack("f", struct.pack("f", x))[0]


# A polynomial of degree 5 for 2^f on [0, 1), with a relative error below 2e-7. It is evaluated by
# Horner's rule, rounding each product and each sum, so that every back end gets the same float32.
# The first coefficient makes 2^0 exactly 1.
_EXP2 = tuple(map(_float32, (1.0, 0.6931513, 0.2401645, 0.05579971, 0.00901733, 0.00186699)))
_LOWEST_EXPONENT = -25.0  # 2^-25 * 2^24 rounds down to the weight 0


def largest(x_MV: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and the lowest index at which it stands, [M] each."""
    # Among ties argmax promises the lowest index; max(dim) does not.
    index_M = x_MV.argmax(1)
    return x_MV.gather(1, index_M[:, None]).squeeze(1), index_M


def draw_among(x_MV: Tensor, k: int, temperature: float, draws_M: Tensor) -> Tensor:
    """[M], the index of one of the k largest values of each row.

    It is chosen by integer weights and the row's random 32-bit number in `draws_M`.
    """
    x_MV = x_MV.clone()
    values, indices = [], []
    for _ in range(k):  # value descending, index ascending, as a stable sort gives
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
    """[M, K] int64, proportional to softmax(values / temperature); 2^24 in the first column.

    The rows of `values_MK` are float32 in descending order, so the first column is the largest.
    """
    y_MK = _product(values_MK - values_MK[:, :1], draw_scale(temperature))
    y_MK = y_MK.nan_to_num(nan=_LOWEST_EXPONENT).clamp(min=_LOWEST_EXPONENT)
    whole_MK = y_MK.floor()
    f_MK = y_MK - whole_MK
    power_MK = torch.full_like(f_MK, _EXP2[-1])
    for coefficient in _EXP2[-2::-1]:
        power_MK = _product(power_MK, f_MK) + coefficient
    # 2^24 * power is a whole number, and `whole_MK` is at most 0.
    return (power_MK * 2.0**24).to(torch.int64) >> (-whole_MK).to(torch.int64)


def _product(a: Tensor, b: Tensor | float) -> Tensor:
    """a * b, rounded to float32 whatever operation follows.

    The product of two float32 numbers is exact in float64. Computed there, it cannot be fused with
    a following sum in float32. Compilers for GPUs do that, and would round once instead of twice.
    """
    return (a.double() * (b.double() if isinstance(b, Tensor) else b)).float()


def draw_scale(temperature: float) -> float:
    """log2(e) / temperature, rounded to the float32 that every back end uses."""
    return _float32(math.log2(math.e) / temperature)
