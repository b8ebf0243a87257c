"""The C++ row kernel: losses and gradients against float64, tokens against the reference.

Shapes: B examples, L tokens, M masked positions, H width, V vocabulary.
"""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import DTYPES, check_kernel, float64_losses, make_logits, row_kernel, rows_for
from torch._subclasses.fake_tensor import FakeTensorMode

from masktuning.ops import backends, masked_lm_head, substitute_tokens
from masktuning.ops.masked_lm_head import LOGITS_BYTES
from masktuning.ops.masked_lm_head_fused import fused_masked_lm_head

# `masktuning.ops.masked_lm_head` is the function, so its module is looked up by name.
head_module = sys.modules["masktuning.ops.masked_lm_head"]
SUBSTITUTE = row_kernel("cpp")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 7, 257, 30522, 30528, 50265, 50304])
@pytest.mark.parametrize("M", [0, 1, 63, 64])
def test_grid(M, V, dtype):
    check_kernel(SUBSTITUTE, M, V, dtype, top_k=8)


@pytest.mark.slow
@pytest.mark.parametrize("V", [30522, 50265])
@pytest.mark.parametrize("M", [205, 3270])
def test_large_grid(M, V):
    check_kernel(SUBSTITUTE, M, V, torch.float32, top_k=1)


@settings(max_examples=60, deadline=None)
@given(
    M=st.integers(0, 20),
    V=st.integers(1, 400),
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([1, 2, 8, 64]),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    aligned=st.booleans(),
    ban=st.booleans(),
    share=st.sampled_from([None, 0.3, 0.99, 2.0]),
)
def test_any_shape(M, V, seed, top_k, dtype, offset, aligned, ban, share):
    # In no order and partly twice; the last ones reach up to the end of the vocabulary.
    banned = torch.cat([torch.arange(0, V, 3), torch.arange(V - 1, -1, -3)]) if ban else None
    size = None if share is None else max(1, int(share * V))
    check_kernel(SUBSTITUTE, M, V, dtype, top_k, seed, offset, aligned, banned, size)


def test_strided_and_transposed_logits():
    rows = rows_for(6, 40)
    generator = torch.Generator().manual_seed(2)
    wide, tall = (torch.randn(shape, generator=generator) for shape in ((6, 80), (40, 6)))
    for logits in (wide[:, ::2], tall.t()):
        with backends.use("cpp"):
            ours = substitute_tokens(logits, **rows)
        expected = float64_losses(logits, rows["targets"])
        np.testing.assert_allclose(ours.losses.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert ours.tokens[:-1].tolist() == logits.numpy().argmax(1)[:-1].tolist()


@pytest.mark.parametrize("top_k", [1, 8, 64])
@pytest.mark.parametrize("kind", ["constant", "tied", "ramp", "minus_infinity", "one_finite"])
def test_awkward_rows(kind, top_k):
    """Rows with many candidates, with ties, and with hardly any candidate."""
    V = 300
    logits = torch.zeros(5, V)
    if kind == "tied":
        logits[:, ::7] = 2.0
    elif kind == "ramp":
        logits = torch.arange(V, dtype=torch.float32).repeat(5, 1) / 100
    elif kind == "minus_infinity":
        logits[:, 10:] = -torch.inf
    elif kind == "one_finite":
        logits[:] = -torch.inf
        logits[:, 123] = 1.0
    rows = rows_for(5, V)
    rows["targets"][1:4] = 123 if kind == "one_finite" else 3
    results = []
    for name in ("cpp", "reference"):
        with backends.use(name):
            results.append(substitute_tokens(logits, **rows, top_k=top_k))
    assert torch.equal(results[0].tokens, results[1].tokens)
    expected = float64_losses(logits, rows["targets"])
    np.testing.assert_allclose(results[0].losses.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_broken_row_shows_and_stays_alone(bad, dtype):
    rows = rows_for(5, 50)
    logits = make_logits(5, 50, dtype)
    logits[2, 7] = bad
    losses, tokens, _, _ = SUBSTITUTE(
        logits, **rows, banned_ids=None, top_k=4, temperature=1.0, gradient_scale=1.0
    )
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert int(tokens[2]) == int(rows["input_ids"].flatten()[2])
    assert logits[2].isnan().any() and logits[[0, 1, 3, 4]].isfinite().all()


def test_every_half_survives_the_round_trip():
    """The log-sum-exp of one logit is that logit, for all 65,536 bit patterns of fp16 and bf16."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        logits = bits.view(dtype)[:, None].clone()
        n = len(bits)
        result = substitute_tokens(
            logits,
            input_ids=torch.zeros(n, 1, dtype=torch.int64),
            positions=torch.arange(n),
            targets=torch.zeros(n, dtype=torch.int64),
            example_ids=torch.arange(n),
            rng=torch.tensor([0, 0]),
        )
        usable = logits[:, 0].float()
        finite = usable.isfinite()
        assert torch.equal(result.lse[finite], usable[finite])
        assert result.losses[~finite & (usable != -math.inf)].isnan().all()


def test_threads_and_repeats_give_the_same_bits():
    logits = make_logits(64, 5000, torch.float32)
    rows = rows_for(64, 5000)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5) * 5:
            torch.set_num_threads(count)
            work = logits.clone()
            outputs = SUBSTITUTE(
                work, **rows, banned_ids=None, top_k=8, temperature=1.0, gradient_scale=1.0
            )
            results.append((work, *outputs))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def head_operands(M, H, V, dtype, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((M, H), (V, H), (V,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_masked_lm_head_gradients(dtype, tolerance, with_bias):
    """Compared with autograd in float64, with a different weight for the loss of each row."""
    M, H, V = 13, 24, 301
    rows = rows_for(M, V)
    operands = head_operands(M, H, V, dtype)
    upstream = torch.linspace(0.1, 2.0, M)
    with backends.use("cpp"):
        output = masked_lm_head(*operands[:2], operands[2] if with_bias else None, **rows)
    (output.losses * upstream).sum().backward()

    exact = [operand.detach().double().requires_grad_() for operand in operands]
    logits = exact[0] @ exact[1].t() + (exact[2] if with_bias else 0.0)
    losses = torch.nn.functional.cross_entropy(
        logits, rows["targets"], reduction="none", ignore_index=-100
    )
    (losses * upstream.double()).sum().backward()
    np.testing.assert_allclose(
        output.losses.detach().numpy(), losses.detach().numpy(), rtol=tolerance, atol=tolerance
    )
    for ours, want in zip(operands, exact, strict=True):
        if want.grad is None:
            assert ours.grad is None
            continue
        error = (ours.grad.double() - want.grad).norm() / want.grad.norm()
        assert float(error) < tolerance


@pytest.mark.parametrize("upstream", [0.3 / 3270, 0.6 / 205, 65536 * 0.3 / 205])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_no_gradient_is_scaled_by_a_rounded_number(dtype, upstream):
    """Rounding alpha / M to 16 bits would make every gradient too long or too short."""
    M, H, V = 64, 64, 500
    rows = rows_for(M, V)
    operands = head_operands(M, H, V, dtype)
    (masked_lm_head(*operands, **rows).losses.sum() * upstream).backward()
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    losses = torch.nn.functional.cross_entropy(
        exact[0] @ exact[1].t() + exact[2], rows["targets"], reduction="sum"
    )
    (losses * upstream).backward()
    # Many elements of the bias gradient are -alpha / M, rounded once to the dtype of the bias.
    rounding = torch.finfo(dtype).eps / 2
    for ours, want, allowed in zip(operands, exact, (1e-3, 1e-3, 1e-3 + rounding), strict=True):
        want, have = want.grad, ours.grad.double()
        assert abs(float((have * want).sum() / want.square().sum()) - 1) < allowed
        assert float((have - want).norm() / want.norm()) < 3e-2


def test_memory_next_to_the_logits_does_not_matter():
    """Matrix products in bfloat16 read the padding of the rows, which may hold old NaNs."""
    M, V = 64, 500
    for _ in range(10):
        junk = [torch.full((M, 512), math.nan, dtype=torch.bfloat16) for _ in range(8)]
        del junk
        operands = head_operands(M, 64, V, torch.bfloat16)
        masked_lm_head(*operands, **rows_for(M, V)).losses.sum().backward()
        assert all(operand.grad.isfinite().all() for operand in operands)


@pytest.mark.parametrize("top_k", [1, 4])
def test_row_chunks_change_nothing_but_memory(monkeypatch, top_k):
    """13 rows in chunks of 5 give the same tokens and text; losses and gradients up to rounding."""
    M, H, V = 13, 24, 301
    rows = rows_for(M, V)
    upstream = torch.linspace(0.1, 2.0, M)
    results, made = [], []
    for limit in (LOGITS_BYTES, 5 * V * 4):
        monkeypatch.setattr(head_module, "LOGITS_BYTES", limit)
        operands = head_operands(M, H, V, torch.float32)
        output = masked_lm_head(*operands, **rows, top_k=top_k)
        made.append(len(output.losses.grad_fn.next_functions))
        (output.losses * upstream).sum().backward()
        results.append((output, [operand.grad for operand in operands]))
    assert made[1] == 3 != made[0]  # torch.cat of three chunks
    (whole, gradients), (chunked, chunk_gradients) = results
    assert torch.equal(whole.tokens, chunked.tokens)
    assert torch.equal(whole.input_ids, chunked.input_ids)
    torch.testing.assert_close(whole.losses, chunked.losses)
    for a, b in zip(gradients, chunk_gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_no_gradient_is_stored_if_none_is_needed():
    operands = head_operands(4, 8, 50, torch.float32)
    rows = rows_for(4, 50)
    with torch.no_grad():
        assert masked_lm_head(*operands, **rows).losses.grad_fn is None
    detached = [operand.detach() for operand in operands]
    assert masked_lm_head(*detached, **rows).losses.grad_fn is None


def test_registered_for_compilation():
    operands = head_operands(4, 8, 50, torch.float32)
    rows = rows_for(4, 50)
    arguments = (*operands, *rows.values(), None, 2, 1.0, None, True, "cpp")
    torch.library.opcheck(torch.ops.masktuning.masked_lm_head.default, arguments)

    def loss(*operands):
        return masked_lm_head(*operands, **rows, top_k=2).losses.sum()

    loss(*operands).backward()
    eager = [operand.grad.clone() for operand in operands]
    for operand in operands:
        operand.grad = None
    torch.compile(loss, fullgraph=True)(*operands).backward()
    for operand, want in zip(operands, eager, strict=True):
        torch.testing.assert_close(operand.grad, want)


def test_fake_tensors_see_an_op():
    """Nothing may be read at the address of a tensor that has no memory."""
    rows, operands = rows_for(4, 50), head_operands(4, 8, 50, torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(operand) for operand in operands]
        output = fused_masked_lm_head(*fakes, *rows.values(), None, 2, 1.0, None, True, "cpp")
    assert [tuple(each.shape) for each in output] == [(4,), (4,), (1, 16)]


def test_a_row_of_minus_infinity_alone():
    rows = rows_for(1, 9)
    results = []
    for name in ("reference", "cpp"):
        with backends.use(name):
            results.append(substitute_tokens(torch.full((1, 9), -math.inf), **rows))
    for result in results:
        assert result.losses.isnan().all() and result.lse.tolist() == [-math.inf]
        assert torch.equal(result.input_ids, rows["input_ids"])


def test_a_second_derivative_is_refused():
    hidden, weight, bias = head_operands(4, 8, 50, torch.float32)
    losses = masked_lm_head(hidden, weight, bias, **rows_for(4, 50)).losses
    with pytest.raises(RuntimeError, match="masked_lm_head can be differentiated once only"):
        torch.autograd.grad(losses.sum(), weight, create_graph=True)


@pytest.mark.parametrize(
    ("M", "bound", "chunk"),
    [(10, 10**6, 10), (100, 50 * 4 * 30, 25), (101, 50 * 4 * 30, 26), (5, 1, 1), (0, 1, 0)],
)
def test_chunks_are_of_equal_size(M, bound, chunk, monkeypatch):
    monkeypatch.setattr(head_module, "LOGITS_BYTES", bound)
    hidden = torch.zeros(M, 3)
    assert head_module._rows_per_chunk(hidden, V=50) == chunk


def test_on_a_gpu_the_bound_of_the_logits_follows_its_memory(monkeypatch):
    for memory, rows in ((16 * 2**30, 4096), (141 * 10**9, 8192)):
        facts = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, facts=facts: facts)
        hidden = SimpleNamespace(
            shape=(8192, 768), device=torch.device("cuda", 0), element_size=lambda: 2
        )
        assert head_module._rows_per_chunk(hidden, V=32768) == rows
