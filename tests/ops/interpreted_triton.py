"""The Triton kernels under Triton's interpreter, in a process that test_triton.py starts.

A row takes 3 to 100 ms, so there are few rows and examples. tests/ops/test_gpu.py has the full
grid.
Shapes: B examples, L tokens, M masked positions, V vocabulary, C classes.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import MASK, expected_masks
from rows import check_kernel, float64_losses, make_logits, row_kernel, rows_for
from test_dual_cross_entropy import expected_terms
from test_mask_sampling import random_batch, random_thresholds

from masktuning.ops import (
    backends,
    mask_sampling,
    masked_lm_head,
    substitute_tokens,
    threshold_masking,
)
from masktuning.ops.backends import select
from masktuning.ops.dual_cross_entropy import KERNELS as DUAL
from masktuning.ops.dual_cross_entropy import DualInputs

assert os.environ["TRITON_INTERPRET"] == "1"
SUBSTITUTE = row_kernel("triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("V", [1, 7, 257, 30522, 30528, 50265, 50304])
def test_grid(V, dtype):
    for M, top_k in ((0, 1), (1, 1), (4, 8)):
        check_kernel(SUBSTITUTE, M, V, dtype, top_k)


@settings(max_examples=12, deadline=None)
@given(
    M=st.integers(1, 5),
    V=st.integers(1, 400),
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([1, 2, 8]),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    aligned=st.booleans(),
    ban=st.booleans(),
)
def test_any_shape(M, V, seed, top_k, offset, aligned, ban):
    banned = torch.arange(0, V, 7)[:5] if ban else None
    check_kernel(SUBSTITUTE, M, V, torch.float32, top_k, seed, offset, aligned, banned)


def test_bfloat16():
    """Triton's interpreter rounds bfloat16 towards zero, so the gradient is not compared here."""
    rows, logits = rows_for(4, 300), make_logits(4, 300, torch.bfloat16)
    losses, tokens, _, _ = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=4, temperature=1.0, gradient_scale=0.0
    )
    expected = float64_losses(logits, rows["targets"])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)
    with backends.use("reference"):
        assert torch.equal(tokens, substitute_tokens(logits, **rows, top_k=4).tokens)


@pytest.mark.parametrize("V", [300, 9000])
@pytest.mark.parametrize("kind", ["constant", "tied", "minus infinity"])
def test_awkward_rows(kind, V):
    index = torch.arange(V)
    row = {
        "constant": torch.zeros(V),
        "tied": 2.0 * (index % 7 == 0),
        "minus infinity": torch.where(index < 10, 0.0, -torch.inf),
    }[kind]
    logits = row.float().repeat(3, 1)
    rows = rows_for(3, V)
    rows["targets"][:] = 3
    losses, tokens, _, _ = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=8, temperature=1.0, gradient_scale=0.0
    )
    with backends.use("reference"):
        assert torch.equal(tokens, substitute_tokens(logits, **rows, top_k=8).tokens)
    expected = float64_losses(logits, rows["targets"])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of inf - inf
@pytest.mark.parametrize("V", [50, 9000])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_shows_and_stays_alone(bad, V):
    rows, logits = rows_for(5, V), make_logits(5, V, torch.float32)
    logits[2, 7] = bad
    losses, tokens, _, _ = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=4, temperature=1.0, gradient_scale=1.0
    )
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert int(tokens[2]) == int(rows["input_ids"].flatten()[2])
    assert logits[2].isnan().any() and logits[[0, 1, 3, 4]].isfinite().all()


def test_a_target_outside_the_vocabulary_shows():
    rows, logits = rows_for(3, 50), make_logits(3, 50, torch.float32)
    rows["targets"] = torch.tensor([50, -7, 5])
    losses, _, _, _ = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=1.0
    )
    assert losses.isnan().tolist() == [True, True, False]
    assert logits[:2].isnan().all() and logits[2].isfinite().all()


def check_tokens(logits, top_k, banned=None, tokenizer_size=None):
    """Compares tokens and losses with the reference, which gets all banned ids as one list."""
    V = logits.shape[1]
    rows = rows_for(logits.shape[0], V)
    losses, tokens, filled, _ = SUBSTITUTE(
        logits, **rows, banned_ids=banned, top_k=top_k, temperature=1.0, gradient_scale=0.0,
        tokenizer_size=tokenizer_size,
    )  # fmt: skip
    beyond = torch.arange(V if tokenizer_size is None else min(tokenizer_size, V), V)
    all_banned = beyond if banned is None else torch.cat([banned, beyond]).unique()
    with backends.use("reference"):
        reference = substitute_tokens(logits, **rows, banned_ids=all_banned, top_k=top_k)
    assert tokens.tolist() == reference.tokens.tolist()
    assert torch.equal(filled, reference.input_ids)
    expected = float64_losses(logits, rows["targets"])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)
    return tokens


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of inf - inf
@settings(max_examples=12, deadline=None)
@given(
    V=st.integers(1, 6000),
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([1, 3, 8, 64]),
    levels=st.sampled_from([2, 50, 10**6]),
    bans=st.sampled_from([0, 1, 20, 32, 33, 500]),
    beyond=st.sampled_from([None, 0, 1, 17, 5000]),
)
def test_any_ties_and_bans(V, seed, top_k, levels, bans, beyond):
    """Few levels make many ties. Half of the banned ids are those of the largest logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (2, V), generator=generator) * (12.0 / levels)
    order = logits[0].argsort(descending=True)
    banned = torch.cat([order[: bans // 2], torch.randperm(V, generator=generator)[: bans // 2]])
    size = None if beyond is None else max(V - beyond, 1)
    check_tokens(logits, top_k, banned.unique() if bans else None, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_largest_logits_in_one_lane_and_in_the_tail(dtype):
    """A tile has 512 lanes of 16 bytes; the logits after the last multiple of 16 are the tail."""
    tile = 512 * 16 // dtype.itemsize
    V = 5 * tile + 21
    logits = torch.zeros(3, V, dtype=dtype)
    column = torch.tensor([t * tile + 40 + w for t in range(5) for w in range(4)])
    logits[0, column] = torch.arange(20.0, 0.0, -1.0).to(dtype)  # one lane, descending
    logits[1, column] = 3.0  # one lane, tied, and tied with the tail
    logits[1, -3:] = 3.0
    logits[2, -5:] = torch.tensor([1.0, 9.0, 9.0, 2.0, 8.0], dtype=dtype)
    logits[2, 7] = 9.0
    for top_k in (8, 22):
        check_tokens(logits, top_k)
    assert check_tokens(logits, 1).tolist() == [40, 40, 7]
    assert check_tokens(logits, 1, column[:6]).tolist() == [tile + 42, tile + 42, 7]
    assert check_tokens(logits, 1, torch.tensor([7])).tolist() == [40, 40, V - 4]
    check_tokens(logits, 8, column[1:18:2], V - 3)
    check_tokens(logits, 8, torch.cat([column, torch.arange(100, 130)]), V - 2)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of inf - inf
def test_nothing_to_substitute():
    """If all ids are banned, or their logits are -inf, the original token stays."""
    logits = make_logits(2, 70, torch.float32)
    original = rows_for(2, 70)["input_ids"].flatten()[:2]
    for tokenizer_size, top_k in ((0, 1), (0, 4)):
        assert torch.equal(check_tokens(logits, top_k, None, tokenizer_size), original)
    assert torch.equal(check_tokens(logits, 1, torch.arange(70)), original)
    logits[:, 60:] = -torch.inf
    logits[:, 12] = -1e30  # the one finite logit that is not banned
    keep = torch.tensor([v for v in range(60) if v != 12])
    assert check_tokens(logits, 8, keep).tolist() == [12, 12]


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # NumPy's, of log(0)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of inf - inf
def test_rows_of_the_lowest_logits():
    """A row of -inf has a NaN loss; one of the lowest finite numbers is a uniform distribution."""
    logits = torch.full((2, 50), torch.finfo(torch.float32).min)
    logits[1] = -torch.inf
    rows = rows_for(2, 50)
    losses, tokens, _, lse = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=0.0
    )
    assert losses[0].item() == pytest.approx(math.log(50), rel=1e-5) and losses[1].isnan()
    assert lse[1] == -math.inf
    assert tokens.tolist() == [0, rows["input_ids"].flatten()[1]]


@pytest.mark.parametrize("V", [30, 4100])
def test_nothing_outside_the_rows_is_touched(V):
    """The memory after the bias is not used, and that between the rows is not written."""
    stride, poison = -(-V // 64) * 64, 12345.0
    for dtype in (torch.float32, torch.float16):
        storage = torch.full((3, stride), poison, dtype=dtype)
        logits = storage[:2, :V]
        logits.copy_(make_logits(2, V, dtype))
        around = torch.full((V + 64,), math.nan, dtype=dtype)
        around[:V] = make_logits(1, V, dtype, seed=9)[0]
        rows = rows_for(2, V)
        whole = logits.double() + around[:V].double()
        expected = float64_losses(whole.to(dtype), rows["targets"])
        losses, _, _, _ = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=1.0,
            bias=around[:V],
        )  # fmt: skip
        np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert logits.abs().max() <= 1
        assert (storage[:2, V:] == poison).all() and (storage[2] == poison).all()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    B=st.integers(1, 3),
    L=st.integers(1, 40),
    rate=st.floats(0.01, 1.0),
    surplus=st.integers(0, 3),
    corrupt=st.booleans(),
)
def test_masks_match_the_definition(seed, epoch, B, L, rate, surplus, corrupt):
    input_ids, maskable, example_ids, offsets, counts = random_batch(seed % 9973, B, L, rate)
    replacements = torch.arange(200, 300) if corrupt else None
    shown, positions, targets = expected_masks(
        input_ids, maskable, example_ids, counts, seed, epoch, replacements
    )
    M = len(positions) + surplus
    rng = torch.tensor([seed, epoch])
    inputs = mask_sampling.MaskingInputs(input_ids, example_ids, rng, MASK, replacements)
    masked_BL, positions_M, targets_M = mask_sampling.KERNELS["triton"](
        inputs, maskable, offsets, M
    )
    assert torch.equal(masked_BL, shown)
    assert positions_M.tolist() == positions + [-1] * surplus
    assert targets_M.tolist() == targets + [-100] * surplus


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    B=st.integers(0, 3),
    L=st.sampled_from([1, 40, 128, 129]),
    corrupt=st.booleans(),
)
def test_threshold_masks_are_those_of_the_reference(seed, epoch, B, L, corrupt):
    input_ids, thresholds, example_ids = random_thresholds(seed % 9973, B, L)
    replacements = torch.arange(200, 300) if corrupt else None
    rng = torch.tensor([seed, epoch])
    inputs = mask_sampling.MaskingInputs(input_ids, example_ids, rng, MASK, replacements)
    want = threshold_masking.sample_masks_threshold_ref(inputs, thresholds)
    have = threshold_masking.KERNELS["triton"](inputs, thresholds)
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))


@settings(max_examples=15, deadline=None)
@given(
    M=st.sampled_from([0, 1, 9, 300]),
    B=st.sampled_from([1, 5, 130]),
    C=st.integers(2, 9),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 1000),
)
def test_dual_cross_entropy(M, B, C, alpha, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.rand(M, generator=generator) * 5
    logits = 2 * torch.randn(B, C, generator=generator)
    labels = torch.randint(0, C, (B,), generator=generator)
    labels[0] = -100
    terms, gradient = DUAL["triton"](
        DualInputs(losses, logits, labels, torch.tensor([7.5, 3.0]), alpha, smoothing, -100)
    )
    mlm, classification = expected_terms(
        losses.numpy(), logits.double().numpy(), labels.tolist(), (7.5, 3.0), smoothing
    )
    joint = alpha * mlm + (1 - alpha) * classification
    want = [joint, mlm, classification, 1 / 7.5]
    assert terms.tolist() == pytest.approx(want, rel=1e-5, abs=1e-6)
    exact = logits.double().requires_grad_()
    torch.nn.functional.cross_entropy(
        exact, labels, reduction="sum", label_smoothing=smoothing
    ).backward()
    torch.testing.assert_close(gradient, (exact.grad / 3.0).float(), rtol=1e-5, atol=1e-6)


def test_dual_cross_entropy_of_nothing_and_of_a_wrong_label():
    zeros = torch.zeros(2, 3)
    terms, gradient = DUAL["triton"](
        DualInputs(
            torch.zeros(0), zeros, torch.tensor([-100, -100]), torch.zeros(2), 0.5, 0.0, -100
        )
    )
    assert terms.tolist() == [0, 0, 0, 0] and not gradient.any()
    terms, gradient = DUAL["triton"](
        DualInputs(torch.ones(2), zeros, torch.tensor([3, 0]), torch.ones(2), 0.5, 0.0, -100)
    )
    assert terms.isnan().tolist() == [True, False, True, False]
    assert gradient.isnan().all(1).tolist() == [True, False]


def test_a_class_of_minus_infinity_is_ordinary():
    logits = torch.tensor([[0.0, 1.0, -math.inf]])
    terms, _ = DUAL["triton"](
        DualInputs(torch.ones(1), logits, torch.tensor([1]), torch.ones(2), 0.0, 0.0, -100)
    )
    assert float(terms[0]) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-5)


def test_masked_lm_head_adds_its_bias_in_the_row_kernel(monkeypatch):
    monkeypatch.setattr(select, "choose", lambda op, device: "triton")
    M, H, V = 4, 8, 301
    rows = rows_for(M, V)
    generator = torch.Generator().manual_seed(1)
    shapes = ((M, H), (V, H), (V,))
    operands = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    output = masked_lm_head(*operands, **rows)
    output.losses.sum().backward()
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    losses = torch.nn.functional.cross_entropy(
        exact[0] @ exact[1].t() + exact[2], rows["targets"], reduction="none"
    )
    losses.sum().backward()
    torch.testing.assert_close(output.losses.double(), losses, rtol=1e-5, atol=1e-5)
    for ours, want in zip(operands, exact, strict=True):
        torch.testing.assert_close(ours.grad, want.grad.float(), rtol=1e-5, atol=1e-5)
