"""The source of the CUDA kernels, run on the CPU, against float64 and the reference.

tests/ops/test_gpu.py runs the compiled kernels where there is a GPU.
Shapes: B examples, L tokens, M masked positions, H width, V vocabulary, C classes.
"""

import math
import platform
import struct

import numpy as np
import pytest
import torch
from emulated_cuda import DEADLOCK, RACE, build, build_folder, emulated, guarded, run
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import MASK, expected_masks
from rows import (
    DTYPES,
    check_kernel,
    float64_gradient,
    float64_losses,
    make_logits,
    row_kernel,
    rows_for,
)
from test_dual_cross_entropy import expected_terms
from test_mask_sampling import random_batch, random_thresholds

from masktuning.ops import (
    backends,
    dual_cross_entropy,
    mask_sampling,
    masked_lm_head,
    sample_masks,
    sample_masks_threshold,
    substitute_tokens,
    token_substitution_kernels,
)
from masktuning.ops.backends import launch
from masktuning.ops.dual_cross_entropy import KERNELS as DUAL
from masktuning.ops.dual_cross_entropy import DualInputs

pytestmark = pytest.mark.skipif(
    platform.system() != "Linux", reason="the stand-in for a GPU needs Linux and g++"
)
SUBSTITUTE = row_kernel("cuda")
FEW, MANY = 1, 10**6  # processors: one block per row, or several blocks per row


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 7, 257, 30522, 30528, 50265, 50304, 70001])
def test_grid(V, dtype, processors):
    with emulated(processors) as started:
        for M in (0, 1, 4):
            check_kernel(SUBSTITUTE, M, V, dtype, top_k=8)
    whole = processors == FEW and V < 70000
    parts = {"substitute"} if whole or V < 300 else {"split", "finish"}
    assert {name.split("_")[0] for name in started} == parts


@settings(max_examples=80, deadline=None)
@given(
    M=st.integers(0, 6),
    V=st.integers(1, 9000),
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([1, 2, 8, 64]),
    dtype=st.sampled_from(DTYPES),
    offset=st.sampled_from([0.0, 1e4, -1e4]),
    aligned=st.booleans(),
    ban=st.sampled_from([0, 5, 200, 900]),
    share=st.sampled_from([None, 0.3, 0.99, 2.0]),
    processors=st.sampled_from([FEW, MANY]),
)
def test_any_shape(M, V, seed, top_k, dtype, offset, aligned, ban, share, processors):
    banned = torch.arange(0, V, 3)[:ban] if ban else None
    size = None if share is None else max(1, int(share * V))
    with emulated(processors, seed):
        check_kernel(SUBSTITUTE, M, V, dtype, top_k, seed, offset, aligned, banned, size)


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_may_be_banned(dtype, processors):
    """With the 900 largest logits of each row banned, the next ones are found."""
    V = 9000
    rows = rows_for(3, V)
    logits = make_logits(3, V, dtype)
    banned = logits[0].float().argsort(descending=True)[:900]
    logits[1:] = logits[0]
    with emulated(processors):
        _, tokens, _, _ = SUBSTITUTE(
            logits, **rows, banned_ids=banned, top_k=1, temperature=1.0, gradient_scale=0.0
        )
    allowed = logits[0].double()
    allowed[banned] = -math.inf
    assert tokens.tolist() == [int(allowed.argmax())] * 3


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize(
    "positions",
    [[0, 1, 2], [3, 40, 97], [0, 95, 99], [99, -1, -1], [5, -1, -1], [-1, -1, -1], [7, 8, 60]],
    ids=str,
)
def test_the_rows_copy_the_text_between_them(positions, processors):
    V = 6000
    generator = torch.Generator().manual_seed(4)
    input_ids = torch.randint(0, V, (5, 20), generator=generator)
    rows = {
        "input_ids": input_ids,
        "positions": torch.tensor(positions),
        "targets": torch.tensor([-100] * 3),
        "example_ids": torch.arange(5),
        "rng": torch.tensor([1, 2]),
    }
    logits = make_logits(3, V, torch.float32)
    with emulated(processors):
        _, tokens, filled, _ = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=0.0
        )
    want = input_ids.flatten().clone()
    for m, position in enumerate(positions):
        if position >= 0:
            want[position] = logits[m].argmax()
    assert torch.equal(filled.flatten(), want)
    assert [t == -1 for t in tokens.tolist()] == [p == -1 for p in positions]


AWKWARD = {
    "constant": lambda V: torch.zeros(V),
    "tied": lambda V: 2.0 * (torch.arange(V) % 7 == 0),
    "ramp": lambda V: torch.arange(V) / 100,
    "minus infinity": lambda V: torch.where(torch.arange(V) < 10, 0.0, -torch.inf),
    "one finite": lambda V: torch.where(torch.arange(V) == 3, -1e4, -torch.inf),
    "only minus infinity": lambda V: torch.full((V,), -torch.inf),
}


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("top_k", [1, 8, 64])
@pytest.mark.parametrize("kind", AWKWARD)
def test_awkward_rows(kind, top_k, processors):
    """Rows with many candidates, with ties, and with hardly any candidate."""
    V = 9000
    logits = AWKWARD[kind](V).float().repeat(5, 1)
    rows = rows_for(5, V)
    rows["targets"][1:4] = 3
    options = {"banned_ids": None, "top_k": top_k, "temperature": 1.0}
    with emulated(processors):
        losses, tokens, _, _ = SUBSTITUTE(logits, **rows, **options, gradient_scale=0.0)
    with backends.use("reference"):
        reference = substitute_tokens(logits, **rows, top_k=top_k)
    assert torch.equal(tokens, reference.tokens)
    expected = float64_losses(logits, rows["targets"])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_broken_row_shows_and_stays_alone(bad, dtype, processors):
    V = 9000
    rows = rows_for(5, V)
    logits = make_logits(5, V, dtype)
    logits[2, 7] = bad
    with emulated(processors):
        losses, tokens, _, lse = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=4, temperature=1.0, gradient_scale=1.0
        )
    assert losses.isnan().tolist() == [False, False, True, False, False]
    assert lse.isnan().tolist() == [False, False, True, False, False]
    assert int(tokens[2]) == int(rows["input_ids"].flatten()[2])
    assert logits[2].isnan().all() and logits[[0, 1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("processors", [FEW, MANY])
def test_what_no_check_on_a_gpu_can_refuse_shows_and_harms_nothing(processors):
    """A target outside the vocabulary gives NaN, and nothing is written at a position outside."""
    V = 9000
    rows = rows_for(3, V)
    rows["targets"] = torch.tensor([V, -7, 5])
    rows["positions"] = torch.tensor([0, 10**9, 2])
    logits = make_logits(3, V, torch.float32)
    with emulated(processors):
        losses, tokens, filled, _ = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=1.0
        )
    assert losses.isnan().tolist() == [True, True, False]
    assert int(tokens[1]) == -1
    assert filled.flatten()[3:].tolist() == rows["input_ids"].flatten()[3:].tolist()
    assert logits[:2].isnan().all() and logits[2].isfinite().all()


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_next_to_the_rows_is_touched(dtype, aligned, processors):
    V, stride = 5001, 5056
    shift = 0 if aligned else 1
    storage = torch.full((4 * stride + shift,), 77.0, dtype=dtype)
    logits = storage[shift:].view(4, stride)[:, :V]
    logits[:] = torch.randn(4, V, generator=torch.Generator().manual_seed(0))
    with emulated(processors):
        SUBSTITUTE(
            logits, **rows_for(4, V), banned_ids=None, top_k=1, temperature=1.0, gradient_scale=1.0
        )
    assert (storage[shift:].view(4, stride)[:, V:] == 77).all() and (storage[:shift] == 77).all()
    assert (logits.float().abs() <= 1).all()


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_next_to_the_rows_is_read(dtype, processors, at_end):
    """Inaccessible pages next to the logits and the other inputs turn a wrong read into a crash."""
    for V, top_k, finite in ((7, 7, 7), (60, 13, 60), (257, 64, 257), (3000, 8, 10), (9001, 8, 5)):
        logits = make_logits(2, V, dtype, aligned=False).contiguous()
        logits[:, finite:] = -torch.inf
        rows = {name: guarded(tensor, at_end) for name, tensor in rows_for(2, V).items()}
        held = guarded(logits, at_end)
        with emulated(processors):
            losses, *_ = SUBSTITUTE(
                held,
                **rows,
                banned_ids=guarded(torch.arange(0, V, 5), at_end),
                top_k=top_k,
                temperature=1.0,
                gradient_scale=1.0,
            )
        np.testing.assert_allclose(
            losses.numpy(), float64_losses(logits, rows["targets"]), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("processors", [FEW, MANY])
def test_nothing_next_to_the_bias_is_read(processors):
    V = 5000
    bias = guarded(torch.randn(V, generator=torch.Generator().manual_seed(2)), at_end=True)
    assert bias.data_ptr() % 16 == 0
    logits, rows = make_logits(2, V, torch.float32), rows_for(2, V)
    with emulated(processors):
        losses, *_ = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=1, temperature=1.0, gradient_scale=0.0, bias=bias
        )
    expected = float64_losses(logits.double() + bias.double(), rows["targets"])
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_order_of_the_threads_changes_no_bit():
    logits = make_logits(3, 9000, torch.float32)
    for processors in (FEW, MANY):
        results = []
        for seed in range(20):
            work = logits.clone()
            with emulated(processors, seed):
                outputs = SUBSTITUTE(
                    work,
                    **rows_for(3, 9000),
                    banned_ids=torch.tensor([5, 6]),
                    top_k=8,
                    temperature=0.7,
                    gradient_scale=1.0,
                )
            results.append((work, *outputs))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_stand_in_finds_a_missing_barrier_and_a_deadlock():
    """A kernel lacks a barrier, and another has a barrier that some of its threads skip."""
    folder = build_folder()
    (folder / "race.cu").write_text(
        '#include "device.cuh"\n'
        'struct Sum { int* out; long unused[8]; };\nextern "C" void skips(Sum a) {\n'
        "  __shared__ int values[64];\n  values[threadIdx.x] = threadIdx.x;\n"
        "  a.out[threadIdx.x] = values[63 - threadIdx.x];\n  values[threadIdx.x] = -1;\n}\n"
        'extern "C" void stops(Sum a) {\n  if (threadIdx.x < 40) __syncthreads();\n'
        "  else masktuning::u32 votes = __ballot_sync(~0u, true);\n}\n"
    )
    library = build("race.cu")
    out = torch.zeros(64, dtype=torch.int32)
    arguments = struct.pack("P64x", out.data_ptr())
    assert run(library, "skips", (1, 1), 64, arguments) == RACE
    assert out.tolist() != list(range(63, -1, -1))
    assert run(library, "stops", (1, 1), 64, arguments) == DEADLOCK
    assert run(library, "nothing", (1, 1), 64, arguments) == 1


def test_the_stand_in_finds_an_array_that_is_written_again_too_early(monkeypatch):
    """The search once wrote to an array from which slower threads still read the row's sum."""
    headers = ("banned", "candidates", "draw", "row_results")
    text = "".join((build_folder() / f"{name}.cuh").read_text() for name in headers)
    text += (build_folder() / "token_substitution.cu").read_text()
    text = "\n".join(
        line for line in text.splitlines() if not line.startswith(("#include", "#pragma once"))
    )
    assert text.count("c.search_value") == 3
    racing = '#include "row_tile.cuh"\n' + text.replace("c.search_value", "c.warp_sum")
    (build_folder() / "racing.cu").write_text(racing)
    library = build("racing.cu")

    V, codes, wrong = 9000, [], 0
    monkeypatch.setattr(token_substitution_kernels, "_processors", lambda device: FEW)
    for seed in range(20):
        start = lambda device, *call, seed=seed: codes.append(run(library, *call, seed))  # noqa: E731
        monkeypatch.setattr(launch, "start", start)
        logits, rows = (
            torch.zeros(1, V),
            rows_for(1, V),
        )  # with so many ties the block searches the row
        want = float64_gradient(logits, rows["targets"])
        SUBSTITUTE(logits, **rows, banned_ids=None, top_k=8, temperature=1.0, gradient_scale=1.0)
        wrong += not torch.allclose(logits.double(), want, rtol=1e-5, atol=1e-6)
    assert codes == [RACE] * 20 and wrong > 0, wrong


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    B=st.integers(1, 4),
    L=st.sampled_from([1, 5, 40, 255, 256, 257, 700]),
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
    with emulated(seed=seed % 997):
        masked = sample_masks(input_ids, maskable, example_ids, offsets, rng, M, MASK, replacements)
    assert torch.equal(masked.input_ids, shown)
    assert masked.positions.tolist() == positions + [-1] * surplus
    assert masked.targets.tolist() == targets + [-100] * surplus


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    B=st.integers(1, 4),
    L=st.sampled_from([1, 5, 40, 255, 256, 257, 700]),
    corrupt=st.booleans(),
)
def test_threshold_masks_are_those_of_the_reference(seed, epoch, B, L, corrupt):
    input_ids, thresholds, example_ids = random_thresholds(seed % 9973, B, L)
    replacements = torch.arange(200, 300) if corrupt else None
    rng = torch.tensor([seed, epoch])
    arguments = (input_ids, thresholds, example_ids, rng, MASK, replacements)
    with backends.use("reference"):
        want = sample_masks_threshold(*arguments)
    with emulated(seed=seed % 997) as started:
        have = sample_masks_threshold(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(have, want, strict=True))
    assert started == ["count_below_threshold", "sample_masks_threshold"]


def test_threshold_masks_of_an_empty_batch_and_of_no_token():
    for B in (0, 2):
        ids = torch.arange(4 * B).view(B, 4)
        with emulated():
            masked = sample_masks_threshold(
                ids, torch.zeros_like(ids), torch.arange(B), torch.tensor([1, 2]), MASK
            )
        assert torch.equal(masked.input_ids, ids)
        assert masked.positions.tolist() == [] and masked.targets.tolist() == []


def test_masks_of_empty_and_overfull_batches():
    rng = torch.tensor([1, 2])
    with emulated():
        empty = sample_masks(
            torch.empty(0, 4, dtype=torch.int64),
            torch.empty(0, 4, dtype=torch.bool),
            torch.empty(0, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
            rng,
            3,
            MASK,
        )
        assert empty.positions.tolist() == [-1] * 3 and empty.targets.tolist() == [-100] * 3
        # Offsets ask for more than the row has. A GPU cannot report it, but every slot is written.
        maskable = torch.tensor([[True, False, True, False]])
        masked = sample_masks(
            torch.arange(10, 14)[None], maskable, torch.zeros(1, dtype=torch.int64),
            torch.tensor([0, 4]), rng, 4, MASK,
        )  # fmt: skip
    assert masked.positions.tolist() == [0, 2, -1, -1]
    assert masked.targets.tolist() == [10, 12, -100, -100]


def test_equal_draws_go_to_the_earlier_token(monkeypatch):
    """Equal draws are too rare to test. In this changed source three tokens share each draw."""
    folder = build_folder()
    source = (folder / "mask_sampling.cu").read_text()
    real = "return philox4x32_10((u32)t, example_id, epoch, kStreamMasking, k0, k1).w0;"
    assert source.count(real) == 1
    (folder / "tied_masks.cu").write_text(source.replace(real, "return (u32)(t / 3) << 9;"))
    library = build("tied_masks.cu")
    L, k = 600, 301
    example_ids, rng = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 0])
    inputs = mask_sampling.MaskingInputs(torch.arange(L)[None], example_ids, rng, MASK, None)
    maskable, offsets = torch.ones(1, L, dtype=torch.bool), torch.tensor([0, k])

    def start(device, kernel, grid, threads, packed):
        assert run(library, kernel, grid, threads, packed) == 0

    monkeypatch.setattr(launch, "start", start)
    _, positions, _ = mask_sampling.KERNELS["cuda"](inputs, maskable, offsets, k)
    assert positions.tolist() == list(range(k))


@settings(max_examples=40, deadline=None)
@given(
    M=st.sampled_from([0, 1, 9, 255, 256, 257, 1000]),
    B=st.integers(1, 300),
    C=st.integers(2, 70),
    alpha=st.sampled_from([0.0, 0.3, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_dual_cross_entropy(M, B, C, alpha, smoothing, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = (torch.rand(M, generator=generator) * 5).requires_grad_()
    logits = (2 * torch.randn(B, C, generator=generator)).to(dtype).requires_grad_()
    labels = torch.randint(0, C, (B,), generator=generator)
    labels[0] = -100
    denominators = torch.tensor([7.5, 3.0])
    with emulated(seed=seed):
        dual = dual_cross_entropy(losses, logits, labels, denominators, alpha, smoothing)
    mlm, classification = expected_terms(
        losses.detach().numpy(), logits.detach().double().numpy(), labels.tolist(), (7.5, 3.0),
        smoothing,
    )  # fmt: skip
    joint = alpha * mlm + (1 - alpha) * classification
    got = torch.stack(dual).tolist()
    assert got == pytest.approx([joint, mlm, classification], rel=1e-5, abs=1e-6)
    dual.loss.backward()
    exact = logits.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(
        exact, labels, reduction="sum", label_smoothing=smoothing
    ).backward()
    want = ((1 - alpha) / 3.0 * exact.grad).to(dtype)
    torch.testing.assert_close(
        logits.grad, want, rtol=1e-5 if dtype.itemsize == 4 else 1e-2, atol=1e-6
    )
    torch.testing.assert_close(losses.grad, torch.full((M,), alpha / 7.5))


def test_a_label_outside_the_classes_and_nothing_counted():
    zeros = torch.zeros(2, 3, dtype=torch.float16)
    with emulated():
        terms, gradient = DUAL["cuda"](
            DualInputs(torch.ones(2), zeros, torch.tensor([3, 0]), torch.ones(2), 0.5, 0.0, -100)
        )
        assert terms.isnan().tolist() == [True, False, True, False]
        assert gradient.isnan().all(1).tolist() == [True, False]
        terms, gradient = DUAL["cuda"](
            DualInputs(
                torch.zeros(0), zeros, torch.tensor([-100, -100]), torch.zeros(2), 0.5, 0.0, -100
            )
        )
    assert terms.tolist() == [0, 0, 0, 0] and not gradient.any()


@pytest.mark.parametrize("processors", [FEW, MANY])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)],
    ids=str,
)
def test_masked_lm_head_gradients(dtype, tolerance, with_bias, processors):
    """The row kernel adds the bias. Compared with autograd in float64, with weighted rows."""
    M, H, V = 5, 24, 4999
    rows = rows_for(M, V)
    generator = torch.Generator().manual_seed(1)
    shapes = ((M, H), (V, H), (V,))
    operands = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]
    upstream = torch.linspace(0.1, 2.0, M)
    with emulated(processors):
        output = masked_lm_head(*operands[:2], operands[2] if with_bias else None, **rows)
    (output.losses * upstream).sum().backward()

    exact = [operand.detach().double().requires_grad_() for operand in operands]
    logits = exact[0] @ exact[1].t() + (exact[2] if with_bias else 0.0)
    losses = torch.nn.functional.cross_entropy(
        logits, rows["targets"], reduction="none", ignore_index=-100
    )
    (losses * upstream.double()).sum().backward()
    torch.testing.assert_close(output.losses.double(), losses, rtol=tolerance, atol=tolerance)
    for ours, want in zip(operands, exact, strict=True):
        if want.grad is None:
            assert ours.grad is None
            continue
        error = (ours.grad.double() - want.grad).norm() / want.grad.norm()
        assert float(error) < tolerance


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_class_of_minus_infinity_is_ordinary(dtype):
    logits = torch.tensor([[0.0, 1.0, -math.inf]], dtype=dtype)
    with emulated():
        terms, _ = DUAL["cuda"](
            DualInputs(torch.ones(1), logits, torch.tensor([1]), torch.ones(2), 0.0, 0.0, -100)
        )
    assert float(terms[0]) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-5)


def test_every_argument_struct_is_as_long_as_its_packing():
    """The structs are read from the source, to find a field that was added on one side only."""
    sizes = {"pointer": 8, "i64": 8, "double": 8, "int": 4, "float": 4}
    for file, declared in launch.DECLARED.items():
        place = "row_results.cuh" if file == "token_substitution" else f"{file}.cu"
        source = (build_folder() / place).read_text()
        body = source.split("Arguments {")[1].split("};")[0]
        fields = [line.split("//")[0].strip() for line in body.splitlines()]
        total = 0
        for field in filter(None, fields):
            for name in field.rstrip(";").split(","):
                kind = "pointer" if "*" in name else field.removeprefix("const ").split()[0]
                total += sizes[kind]
        assert -(-total // 8) * 8 == struct.calcsize(declared.struct)


@pytest.mark.parametrize("processors", [FEW, MANY])
def test_no_choice_keeps_the_tokens(processors):
    """With top_k 0, which the benchmarks use, only the losses are computed."""
    rows, logits = rows_for(4, 9000), make_logits(4, 9000, torch.float32)
    with emulated(processors):
        losses, tokens, filled, _ = SUBSTITUTE(
            logits, **rows, banned_ids=None, top_k=0, temperature=1.0, gradient_scale=0.0
        )
    assert torch.equal(filled, rows["input_ids"])
    assert tokens.tolist() == [*rows["input_ids"].flatten()[:3].tolist(), -1]
    np.testing.assert_allclose(losses.numpy(), float64_losses(logits, rows["targets"]), rtol=1e-5)
