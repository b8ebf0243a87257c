"""The counter contract: every random number is Philox4x32-10 of what it is drawn for.

    key     = (seed & 0xffffffff, seed >> 32)
    counter = (token position t, example_id, epoch, stream)        # 32 bits each

`example_id` is the row of the training set and `epoch` counts how often that row has been seen.
A mask therefore depends on neither batch size, order, number of processes nor back end, and is the
same after a resume. csrc/philox.h holds the same contract for C++ and CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM_MASKING = 0  # which tokens are masked
STREAM_SUBSTITUTION = 1  # which of the top-k predictions is drawn
STREAM_CORRUPTION = 2  # mask, random token or original (80/10/10)

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32 with ten rounds (Salmon et al., SC 2011) on int64 tensors of 32-bit values.

    The four counter words and the two key words broadcast against each other. Returns four words
    of the broadcast shape, each in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + _KEY_STEPS[0]) & _LOW
        k1 = (k1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def _product(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """The high and the low 32 bits of the product of two 32-bit numbers.

    The multiplier is split into two halves of 16 bits, so that nothing leaves the range of int64.
    torch.compile translates to C++, where a signed product that does is undefined, and compilers
    make other numbers of it.
    """
    lower, upper = (multiplier & 0xFFFF) * word, (multiplier >> 16) * word
    low = (lower + ((upper & 0xFFFF) << 16)) & _LOW
    return (upper + (lower >> 16)) >> 16, low


def draw_words(
    rng: Tensor, positions: Tensor, example_ids: Tensor, stream: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words of the tokens at `positions` of the examples `example_ids`.

    `rng` is int64 [seed, epoch]. `positions`, counted within the example, and `example_ids`
    broadcast against each other. Word 0 is what the contract calls the draw of the token.
    """
    seed, epoch = rng[0], rng[1]
    counter = (
        positions & _LOW,
        example_ids & _LOW,
        epoch & _LOW,
        torch.full_like(epoch, stream),
    )
    return philox4x32_10(counter, (seed & _LOW, (seed >> 32) & _LOW))
