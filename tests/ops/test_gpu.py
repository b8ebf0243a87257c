"""The compiled CUDA and Triton kernels on a GPU; skipped where there is none.

    CUDA_VISIBLE_DEVICES=0 python -m pytest tests/ops/test_gpu.py

benchmarks/gpu_check.sh runs the tests named small_* under compute-sanitizer, which instruments the
kernels of this package only. Whatever these tests read is therefore made on the CPU and copied by
.cuda() or .to(), without changing dtype or layout. initcheck considers such a copy initialised, but
does not know what a kernel of torch wrote.
Shapes: B examples, L tokens, M masked positions, H width, V vocabulary, C classes.
"""

import math

import numpy as np
import pytest
import torch
from families import tiny_model, tiny_tokenizer
from oracles import MASK
from rows import DTYPES, check_kernel, make_logits, row_kernel, rows_for
from stock_step import make_batch
from test_dual_cross_entropy import expected_terms
from test_mask_sampling import random_batch, random_thresholds

from masktuning.data.batch import Batch
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.methods.step import Step
from masktuning.ops import (
    backends,
    dual_cross_entropy,
    masked_lm_head,
    sample_masks,
    sample_masks_threshold,
    substitute_tokens,
    token_substitution_kernels,
)
from masktuning.ops.backends import cubins, launch, select
from masktuning.training.backward import backward_each

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NAMES = ["cuda", "triton"]
SYNC_NOTICE = "ignore:Synchronization debug mode is a prototype"
TF32_NOTICE = "ignore:TensorFloat32 tensor cores"


@pytest.fixture(params=["cuda-whole", "cuda-split", "triton"])
def name(request, monkeypatch):
    """A back end; for CUDA with one block per row and with several, whatever the GPU."""
    name, _, split = request.param.partition("-")
    reason = select.unavailable_reason(name, torch.device("cuda", 0))
    assert reason == ""
    if split:
        processors = 1 if split == "whole" else 10**6
        monkeypatch.setattr(token_substitution_kernels, "_processors", lambda device: processors)
    return name


@pytest.fixture(params=NAMES)
def module_name(request):
    """A back end, for ops without rows of logits."""
    assert select.unavailable_reason(request.param, torch.device("cuda", 0)) == ""
    return request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [1, 7, 257, 30522, 30528, 50265, 50304, 70001])
def test_grid(name, V, dtype):
    for M in (0, 1, 63, 64):
        check_kernel(row_kernel(name), M, V, dtype, top_k=8, device="cuda")


@pytest.mark.parametrize("M", [205, 3270])
@pytest.mark.parametrize("V", [30522, 50265])
def test_large_grid(name, V, M):
    check_kernel(row_kernel(name), M, V, torch.bfloat16, top_k=1, device="cuda")


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("V", [257, 9001])
def test_small_rows(name, V, dtype, aligned):
    for top_k, offset, ban in ((1, 0.0, 0), (8, 1e4, 5), (64, -1e4, 200)):
        banned = torch.arange(0, V, 3)[:ban] if ban else None
        check_kernel(
            row_kernel(name),
            3,
            V,
            dtype,
            top_k,
            1,
            offset,
            aligned,
            banned,
            V - 3,
            "cuda",
        )


@pytest.mark.parametrize("kind", ["constant", "tied", "ramp", "minus infinity"])
def test_small_awkward_rows(name, kind):
    V = 9000
    index = torch.arange(V)
    row = {
        "constant": torch.zeros(V),
        "tied": 2.0 * (index % 7 == 0),
        "ramp": index / 100,
        "minus infinity": torch.where(index < 10, 0.0, -torch.inf),
    }[kind]
    logits, rows = row.float().repeat(5, 1).cuda(), rows_for(5, V, device="cuda")
    rows["targets"][1:4] = 3
    for top_k in (1, 8, 64):
        results = []
        for each in (name, "reference"):
            with backends.use(each):
                results.append(substitute_tokens(logits, **rows, top_k=top_k))
        assert torch.equal(results[0].tokens, results[1].tokens)
        torch.testing.assert_close(results[0].losses, results[1].losses, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [[3, 40, 97], [0, 99, -1], [-1, -1, -1]], ids=str)
def test_small_text_between_the_rows(name, positions):
    """The CUDA kernels copy the text between the masked tokens themselves."""
    logits = make_logits(3, 9000, torch.float16, device="cuda")
    rows = {
        "input_ids": torch.arange(100).view(5, 20),
        "positions": torch.tensor(positions),
        "targets": torch.tensor([1, 2, -100]),
        "example_ids": torch.arange(5),
        "rng": torch.tensor([1, 2]),
    }
    rows = {key: tensor.cuda() for key, tensor in rows.items()}
    results = []
    for each in (name, "reference"):
        with backends.use(each):
            results.append(substitute_tokens(logits, **rows).input_ids)
    assert torch.equal(*results)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_broken_row(name, dtype, bad):
    rows, logits = rows_for(5, 9000, device="cuda"), make_logits(5, 9000, dtype, device="cuda")
    logits[2, 7] = bad
    rows["targets"][3] = 9000  # outside the vocabulary
    losses, tokens, _, _ = row_kernel(name)(
        logits, **rows, banned_ids=None, top_k=4, temperature=1.0, gradient_scale=1.0
    )
    assert losses.isnan().tolist() == [False, False, True, True, False]
    assert int(tokens[2]) == int(rows["input_ids"].flatten()[2])
    assert logits[[0, 1, 4]].isfinite().all()


@pytest.mark.parametrize(
    "part", range(4)
)  # in parts, which several processes can share: Triton compiles for many sizes
def test_small_masks(module_name, part):
    """C++ and the GPU's kernels give the same masks, bit for bit."""
    random = np.random.default_rng(part)
    for trial in range(10 * part, 10 * part + 10):
        B, L = int(random.integers(1, 17)), int(random.integers(1, 700))
        input_ids, maskable, example_ids, offsets, _ = random_batch(trial, B, L, 0.2)
        rng = torch.tensor([int(random.integers(-(2**63), 2**63)), int(random.integers(2**32))])
        replacements = torch.arange(7, 90) if trial % 2 else None
        M = int(offsets[-1]) + trial % 3
        arguments = [input_ids, maskable, example_ids, offsets, rng, M, MASK, replacements]
        with backends.use("cpp"):
            want = sample_masks(*arguments)
        moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        with backends.use(module_name):
            have = sample_masks(*moved)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(have, want, strict=True))


def test_small_threshold_masks(module_name):
    """The same for thresholds."""
    random = np.random.default_rng(7)
    for trial in range(10):
        B, L = int(random.integers(1, 17)), int(random.integers(1, 700))
        input_ids, thresholds, example_ids = random_thresholds(trial, B, L)
        rng = torch.tensor([int(random.integers(-(2**63), 2**63)), int(random.integers(2**32))])
        replacements = torch.arange(7, 90) if trial % 2 else None
        arguments = [input_ids, thresholds, example_ids, rng, MASK, replacements]
        with backends.use("cpp"):
            want = sample_masks_threshold(*arguments)
        moved = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
        with backends.use(module_name):
            have = sample_masks_threshold(*moved)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(have, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_dual_cross_entropy(module_name, dtype):
    for M, B, C in ((0, 1, 2), (9, 5, 3), (1000, 300, 7)):
        generator = torch.Generator().manual_seed(M)
        losses = torch.rand(M, generator=generator) * 5
        logits = (2 * torch.randn(B, C, generator=generator)).to(dtype)
        labels = torch.randint(0, C, (B,), generator=generator)
        labels[0] = -100
        terms = expected_terms(
            losses.numpy(), logits.double().numpy(), labels.tolist(), (7.5, 3.0), 0.1
        )
        on_gpu = logits.cuda().requires_grad_()
        with backends.use(module_name):
            dual = dual_cross_entropy(
                losses.cuda(), on_gpu, labels.cuda(), torch.tensor([7.5, 3.0]).cuda(), 0.3, 0.1
            )
        assert dual.mlm.item() == pytest.approx(terms[0], rel=1e-5, abs=1e-6)
        assert dual.classification.item() == pytest.approx(terms[1], rel=1e-5, abs=1e-6)
        dual.loss.backward()
        exact = logits.double().requires_grad_()
        torch.nn.functional.cross_entropy(
            exact, labels, reduction="sum", label_smoothing=0.1
        ).backward()
        torch.testing.assert_close(
            on_gpu.grad.cpu(), (0.7 / 3 * exact.grad).to(dtype), rtol=1e-2, atol=1e-6
        )


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_lm_head_gradients(name, dtype, with_bias):
    M, H, V = 13, 64, 30522
    rows = rows_for(M, V, device="cuda")
    generator = torch.Generator().manual_seed(1)
    shapes = ((M, H), (V, H), (V,))
    operands = [torch.randn(s, generator=generator).to("cuda", dtype) / 4 for s in shapes]
    for operand in operands:
        operand.requires_grad_()
    upstream = torch.linspace(0.1, 2.0, M, device="cuda")
    with backends.use(name):
        output = masked_lm_head(*operands[:2], operands[2] if with_bias else None, **rows)
        (output.losses * upstream).sum().backward()
    exact = [operand.detach().double().requires_grad_() for operand in operands]
    logits = exact[0] @ exact[1].t() + (exact[2] if with_bias else 0.0)
    losses = torch.nn.functional.cross_entropy(
        logits, rows["targets"], reduction="none", ignore_index=-100
    )
    (losses * upstream.double()).sum().backward()
    tolerance = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(output.losses.double(), losses, rtol=tolerance, atol=tolerance)
    for ours, want in zip(operands[: 2 + with_bias], exact, strict=False):
        assert float((ours.grad.double() - want.grad).norm() / want.grad.norm()) < tolerance


def test_repeats_give_the_same_bits(name):
    logits, rows = make_logits(64, 30522, torch.float16, device="cuda"), rows_for(64, 30522)
    rows = {key: tensor.cuda() for key, tensor in rows.items()}
    results = []
    for _ in range(20):
        work = logits.clone()
        outputs = row_kernel(name)(
            work, **rows, banned_ids=None, top_k=8, temperature=1.0, gradient_scale=1024.0
        )
        results.append((work, *outputs))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_a_graph_replays_with_another_seed(module_name):
    """Captured once, a graph gives the masks, tokens and losses of another epoch set in `rng`."""
    input_ids, maskable, example_ids, offsets, _ = random_batch(3, 8, 64, 0.2)
    V, M = 30522, int(offsets[-1])
    logits = torch.randn(M, V, generator=torch.Generator().manual_seed(0)).cuda()
    rng = torch.tensor([7, 0], device="cuda")
    held = [t.cuda() for t in (input_ids, maskable, example_ids, offsets)]
    labels, counts = torch.zeros(8, dtype=torch.int64).cuda(), torch.tensor([5.0, 8.0]).cuda()

    def step():
        masked = sample_masks(*held, rng, M, MASK)
        filled = substitute_tokens(
            logits, held[0], masked.positions, masked.targets, held[2], rng, top_k=8
        )
        return (
            *masked,
            *filled,
            *dual_cross_entropy(filled.losses, logits[:8, :3], labels, counts, 0.5),
        )

    with backends.use(module_name):
        step()  # Triton compiles here
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        for epoch in (0, 5):
            rng[1] = epoch
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))
    with backends.use("reference"):
        assert torch.equal(captured[1], sample_masks(*held, rng, M, MASK).positions)


@pytest.mark.filterwarnings(TF32_NOTICE)
def test_registered_for_compilation(module_name):
    rows = rows_for(8, 500, device="cuda")
    generator = torch.Generator().manual_seed(1)
    shapes = ((8, 32), (500, 32), (500,))
    operands = [torch.randn(s, generator=generator).cuda().requires_grad_() for s in shapes]
    with backends.use(module_name):
        torch.library.opcheck(
            torch.ops.masktuning.masked_lm_head.default,
            (*operands, *rows.values(), None, 2, 1.0, None, True, module_name),
        )
        labels, counts = torch.tensor([0, 2]).cuda(), torch.ones(2).cuda()
        losses, logits = torch.rand(4).cuda(), torch.randn(2, 3).cuda()
        torch.library.opcheck(
            torch.ops.masktuning.dual_cross_entropy.default,
            (
                losses.requires_grad_(),
                logits.requires_grad_(),
                labels,
                counts,
                0.6,
                0.1,
                -100,
                module_name,
            ),
        )

        def loss(*operands):
            return masked_lm_head(*operands, **rows, top_k=2).losses.sum()

        eager = torch.autograd.grad(loss(*operands), operands)
        compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(*operands), operands)
    for have, want in zip(compiled, eager, strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings(SYNC_NOTICE)
def test_a_step_waits_for_nothing(module_name):
    """Runs a training step in the debug mode in which waiting for the device is an error."""
    batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in make_batch(8).items()}
    model = tiny_model("bert").cuda().train()
    method = MaskTuning(model, tiny_tokenizer(), MaskTuningOptions(alpha=0.5))
    counts = {
        "masked": torch.tensor(float(batch["num_masked"])).cuda(),
        "labels": torch.tensor(8.0).cuda(),
    }
    rng = torch.tensor([1, 2]).cuda()

    def step():
        losses = method.losses(Batch.from_dict(batch), Step(rng, counts))
        return sum(backward_each(method, method, losses, lambda loss, _: loss.backward()).values())

    with backends.use(module_name):
        first = step()  # loads and compiles
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error")
            second = step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(first) and torch.isfinite(second)


def test_another_stream_and_thread():
    """Kernels start on the current stream of torch, also in a thread without a current context."""
    import threading

    logits, rows = make_logits(8, 30522, torch.float16, device="cuda"), rows_for(8, 30522)
    rows = {key: tensor.cuda() for key, tensor in rows.items()}
    with backends.use("cuda"):
        want = substitute_tokens(logits, **rows).losses
    results = []

    def other():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream), backends.use("cuda"):
            results.append(substitute_tokens(logits, **rows).losses)
        stream.synchronize()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert torch.equal(results[0], want)


def test_cubins_can_also_be_compiled_here(tmp_path, monkeypatch):
    """The cubins that NVRTC compiles here do what the packaged ones do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cubins, "packaged_folders", list)
    launch.load.cache_clear()
    try:
        check_kernel(row_kernel("cuda"), 3, 9001, torch.float16, top_k=8, device="cuda")
        assert len(list((tmp_path / "masktuning").glob("*.cubin"))) == len(launch.DECLARED)
    finally:
        launch.load.cache_clear()
