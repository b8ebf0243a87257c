"""sample_masks: both back ends against the definition in Python, and against each other.

Shapes: B examples, L tokens, M masked positions.
"""

import masktuning_C
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import MASK, counts_of, expected_masks
from scipy import stats

from masktuning.ops import backends, sample_masks, sample_masks_threshold


def random_batch(seed, B, L, rate):
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, 1000, (B, L), generator=generator)
    maskable = torch.rand(B, L, generator=generator) < torch.rand(B, 1, generator=generator)
    example_ids = torch.randint(0, 2**32, (B,), generator=generator)
    counts = counts_of(maskable, rate)
    offsets = torch.tensor([0, *np.cumsum(counts)], dtype=torch.int64)
    return input_ids, maskable, example_ids, offsets, counts


def random_thresholds(seed, B, L):
    """Texts, thresholds from 0 to 2^32, both included, and example ids."""
    input_ids, maskable, example_ids, _, _ = random_batch(seed, B, L, 0.5)
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.randint(0, 2**32, (B, L), generator=generator) * maskable
    thresholds[:, L // 2 :: 7] = 2**32
    return input_ids, thresholds, example_ids


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    B=st.integers(1, 5),
    L=st.integers(1, 40),
    rate=st.floats(0.01, 1.0),
    surplus=st.integers(0, 3),
    corrupt=st.booleans(),
)
def test_matches_the_definition(seed, epoch, B, L, rate, surplus, corrupt):
    input_ids, maskable, example_ids, offsets, counts = random_batch(seed % 9973, B, L, rate)
    replacements = torch.arange(200, 300) if corrupt else None
    shown, positions, targets = expected_masks(
        input_ids, maskable, example_ids, counts, seed, epoch, replacements
    )
    M = len(positions) + surplus
    for name in ("reference", "cpp"):
        with backends.use(name):
            masked = sample_masks(
                input_ids,
                maskable,
                example_ids,
                offsets,
                torch.tensor([seed, epoch]),
                M,
                MASK,
                replacements,
            )
        assert torch.equal(masked.input_ids, shown)
        assert masked.positions.tolist() == positions + [-1] * surplus
        assert masked.targets.tolist() == targets + [-100] * surplus


def test_back_ends_agree_on_a_thousand_random_batches():
    random = np.random.default_rng(0)
    for trial in range(1000):
        B, L = int(random.integers(1, 17)), int(random.integers(1, 200))
        rate = float(random.uniform(0.01, 0.6))
        input_ids, maskable, example_ids, offsets, _ = random_batch(trial, B, L, rate)
        rng = torch.tensor([int(random.integers(-(2**63), 2**63)), int(random.integers(2**32))])
        replacements = torch.arange(7, 90) if trial % 2 else None
        M = int(offsets[-1])
        thresholds = torch.where(maskable, round(rate * 2**32), 0)
        results = []
        for name in ("reference", "cpp"):
            with backends.use(name):
                exact = sample_masks(
                    input_ids, maskable, example_ids, offsets, rng, M, MASK, replacements
                )
                bernoulli = sample_masks_threshold(
                    input_ids, thresholds, example_ids, rng, MASK, replacements
                )
            results.append((*exact, *bernoulli))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True)), trial


def test_threshold_masks_the_draws_below_it():
    input_ids = torch.arange(5, 45).view(2, 20)
    thresholds = torch.full((2, 20), round(0.3 * 2**32))
    thresholds[0, :3] = 0
    thresholds[1, 4] = 2**32  # always masked
    expected = [
        b * 20 + t
        for b, example in enumerate((11, 12))
        for t in range(20)
        if masktuning_C.philox4x32_10(t, example, 6, 0, 5, 0)[0] < int(thresholds[b, t])
    ]
    for name in ("reference", "cpp"):
        with backends.use(name):
            masked = sample_masks_threshold(
                input_ids, thresholds, torch.tensor([11, 12]), torch.tensor([5, 6]), MASK
            )
        assert masked.positions.tolist() == expected
        assert masked.targets.tolist() == [p + 5 for p in expected]
        assert (masked.input_ids.flatten()[expected] == MASK).all()
        assert 24 in expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thresholds": torch.zeros(2, 4)}, "thresholds must be int64"),
        ({"thresholds": torch.zeros(2, 5, dtype=torch.int64)}, "thresholds must have shape"),
        ({"rng": torch.tensor([0])}, "rng must have shape"),
    ],
)
def test_bad_thresholds_are_named(change, message):
    arguments = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "thresholds": torch.ones(2, 4, dtype=torch.int64),
        "example_ids": torch.tensor([0, 1]),
        "rng": torch.tensor([0, 0]),
        "mask_token_id": MASK,
    }
    with pytest.raises(ValueError, match=message):
        sample_masks_threshold(**{**arguments, **change})


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_positions_are_uniform(name):
    """Chi-square over 40,000 masks of a row of 20 maskable tokens, 2 per epoch, at p > 1e-4."""
    B, L, k = 2000, 24, 2
    maskable = torch.zeros(B, L, dtype=torch.bool)
    maskable[:, 2:22] = True
    offsets = torch.arange(0, k * B + 1, k)
    counts = torch.zeros(L)
    for epoch in range(10):
        with backends.use(name):
            positions = sample_masks(
                torch.full((B, L), 9),
                maskable,
                torch.arange(B),
                offsets,
                torch.tensor([1234, epoch]),
                k * B,
                MASK,
            ).positions
        counts += torch.bincount(positions % L, minlength=L)
    assert counts[~maskable[0]].sum() == 0
    observed = counts[maskable[0]].numpy()
    # The two positions of a row are distinct, so the counts vary only (20 - 2) / (20 - 1) times as
    # much as with independent draws. The statistic is scaled before it is compared.
    statistic = ((observed - observed.mean()) ** 2 / observed.mean()).sum() * 19 / 18
    p = stats.chi2.sf(statistic, 19)
    assert 1e-4 < p < 1 - 1e-4


def test_random_replacements_and_their_shares():
    """80/10/10 holds within five standard deviations; random tokens are uniformly distributed."""
    B, L = 500, 50
    replacements = torch.arange(100, 110)
    masked = sample_masks(
        torch.full((B, L), 9),
        torch.ones(B, L, dtype=torch.bool),
        torch.arange(B),
        torch.arange(0, B * L + 1, L),
        torch.tensor([3, 0]),
        B * L,
        MASK,
        replacements,
    )
    n = B * L
    shown = masked.input_ids.flatten()
    for share, observed in ((0.8, shown == MASK), (0.1, shown == 9), (0.1, shown >= 100)):
        sd = (share * (1 - share) / n) ** 0.5
        assert abs(float(observed.float().mean()) - share) < 5 * sd
    drawn = torch.bincount(shown[shown >= 100] - 100, minlength=10).numpy()
    assert stats.chisquare(drawn).pvalue > 1e-4


def test_rows_without_maskable_tokens_mask_nothing():
    for name in ("reference", "cpp"):
        with backends.use(name):
            masked = sample_masks(
                torch.tensor([[5, 6], [7, 8]]),
                torch.tensor([[False, False], [True, False]]),
                torch.tensor([0, 1]),
                torch.tensor([0, 0, 1]),
                torch.tensor([0, 0]),
                1,
                MASK,
            )
        assert masked.input_ids.tolist() == [[5, 6], [MASK, 8]]
        assert masked.positions.tolist() == [2]


@pytest.mark.parametrize("name", ["reference", "cpp"])
def test_strided_inputs_are_read_as_they_look(name):
    ids = torch.arange(5, 85).view(2, 40)[:, ::2]
    maskable = torch.ones(20, 2, dtype=torch.bool).t()
    example_ids = torch.arange(3, 7)[::2]
    shown, positions, targets = expected_masks(ids, maskable, example_ids, [5, 5], 1, 2)
    offsets, rng = torch.tensor([0, 5, 10]), torch.tensor([1, 2])
    with backends.use(name):
        masked = sample_masks(ids, maskable, example_ids, offsets, rng, 10, MASK)
    assert torch.equal(masked.input_ids, shown)
    assert masked.positions.tolist() == positions and masked.targets.tolist() == targets


@pytest.mark.parametrize("name", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.zeros(2, 4, dtype=torch.int32)}, "input_ids must be int64"),
        ({"input_ids": torch.zeros(4, dtype=torch.int64)}, r"input_ids must be \[B, L\]"),
        ({"maskable": torch.ones(2, 4)}, "maskable must be bool"),
        ({"maskable": torch.ones(2, 5, dtype=torch.bool)}, r"maskable must have shape \[2, 4\]"),
        ({"example_ids": torch.zeros(3, dtype=torch.int64)}, "example_ids must have shape"),
        ({"offsets": torch.tensor([0, 1])}, "offsets must have shape"),
        ({"offsets": torch.tensor([0, 1, 9])}, "offsets must start at 0 and end at or below"),
        ({"offsets": torch.tensor([0, 5, 5]), "num_masked": 9}, "offsets ask for 5 .* in row 0"),
        ({"offsets": torch.tensor([0, 2, 1])}, "offsets ask for -1 .* in row 1"),
        ({"rng": torch.tensor([0])}, "rng must have shape"),
        ({"replacement_ids": torch.tensor([], dtype=torch.int64)}, "replacement_ids is empty"),
    ],
)
def test_bad_arguments_are_named(name, change, message):
    arguments = {
        "input_ids": torch.zeros(2, 4, dtype=torch.int64),
        "maskable": torch.ones(2, 4, dtype=torch.bool),
        "example_ids": torch.tensor([0, 1]),
        "offsets": torch.tensor([0, 1, 2]),
        "rng": torch.tensor([0, 0]),
        "num_masked": 2,
        "mask_token_id": MASK,
    }
    with backends.use(name), pytest.raises(ValueError, match=message):
        sample_masks(**{**arguments, **change})


def test_registered_for_compilation():
    input_ids, maskable, example_ids, offsets, _ = random_batch(0, 3, 30, 0.2)
    rng, M = torch.tensor([1, 2]), int(offsets[-1])
    arguments = (input_ids, maskable, example_ids, offsets, rng, M, MASK, None)
    torch.library.opcheck(torch.ops.masktuning.sample_masks.default, arguments)
    compiled = torch.compile(sample_masks, fullgraph=True)(*arguments)
    eager = sample_masks(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))


def test_thresholds_are_registered_for_compilation():
    """How many tokens are masked depends on values, so a graph needs a size of its own for it."""
    input_ids, thresholds, example_ids = random_thresholds(0, 3, 30)
    arguments = (input_ids, thresholds, example_ids, torch.tensor([1, 2]), MASK, None)
    torch.library.opcheck(torch.ops.masktuning.sample_masks_threshold.default, arguments)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(sample_masks_threshold, fullgraph=True)(*arguments)
    eager = sample_masks_threshold(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager, strict=True))
