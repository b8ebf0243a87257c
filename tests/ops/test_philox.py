"""Philox4x32-10 against the known answers of Random123, in PyTorch and in C++."""

import masktuning_C
import pytest
import torch

from masktuning.ops.philox import draw_words, philox4x32_10

# kat_vectors of Random123: counter, key, output.
ONES = 0xFFFFFFFF
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter, key, output):
    assert masktuning_C.philox4x32_10(*counter, *key) == output
    words = philox4x32_10(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == output


def test_contract_places_every_number():
    """The counter is (t, example_id, epoch, stream), the key the two halves of the seed."""
    seed, epoch, t, example, stream = 0x123456789ABCDEF0, 7, 41, 2**31 + 5, 2
    words = draw_words(
        torch.tensor([seed, epoch]), torch.tensor([t]), torch.tensor([example]), stream
    )
    expected = masktuning_C.philox4x32_10(t, example, epoch, stream, 0x9ABCDEF0, 0x12345678)
    assert tuple(int(word) for word in words) == expected


def test_negative_seed_is_its_64_bits():
    words = draw_words(torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0]), 0)
    assert int(words[0]) == masktuning_C.philox4x32_10(0, 0, 0, 0, ONES, ONES)[0]


class Int64(int):
    """An integer whose results must stay in the range of int64."""


def checked(name):
    operator = getattr(int, name)

    def operate(a, b):
        result = Int64(operator(int(a), int(b)))
        assert -(2**63) <= result < 2**63, f"{a} {name} {b}"
        return result

    return operate


for name in ("add", "mul", "and", "xor", "lshift", "rshift"):
    for dunder in (f"__{name}__", f"__r{name}__"):
        setattr(Int64, dunder, checked(dunder))


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_nothing_leaves_the_range_of_int64(counter, key, output):
    """In the C++ that torch.compile makes of it, a product that does is undefined."""
    assert philox4x32_10(tuple(map(Int64, counter)), tuple(map(Int64, key))) == output
