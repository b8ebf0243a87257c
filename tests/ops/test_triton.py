"""The Triton kernels without a GPU: run by the interpreter, and compiled for GPUs.

The tests compile what the ops launch, with the same arguments and options, through the same code of
Triton. tests/ops/test_gpu.py runs the kernels if there is a GPU.
"""

import os
import re
import subprocess
import sys
from itertools import product

import pytest
import torch
from conftest import ROOT

from masktuning.ops import mask_sampling, threshold_masking, token_substitution_kernels
from masktuning.ops.dual_cross_entropy import DualInputs
from masktuning.ops.dual_cross_entropy import triton_launch as dual_loss_launch
from masktuning.ops.masked_rows import MaskedRows, TokenChoice

pytest.importorskip("triton")

# Registers of a multiprocessor (sm_70, sm_80 and sm_90), and programs that are to share them.
REGISTERS, PROGRAMS_AT_A_TIME = 65536, 4


def test_under_the_interpreter():
    """In a process of its own, because the interpreter replaces the compiler for good."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/ops/interpreted_triton.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


class Target:
    """Takes the place of Triton's driver, with as much of it as compiling needs."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compile_for():
    """Compiles a Launch for a capability by Triton's own `warmup`, which launches nothing."""
    from triton.runtime.driver import driver

    before = dict(vars(driver))  # without a GPU there is no driver that `reset_active` could find

    def compiled(launch, capability):
        driver.set_active(Target(capability))
        grid = (launch.programs,)
        return launch.kernel.warmup(*launch.arguments, grid=grid, **launch.options)

    yield compiled
    vars(driver).update(before)


def row_launch(V, dtype, top_k=1, M=2, B=2, L=16, banned=3, first=0, stride=None):
    """The launch for M rows from `first` on, in a buffer like that of masked_lm_head."""
    stride = -(-V // 64) * 64 if stride is None else stride
    ids = torch.zeros(first + M, dtype=torch.int64)
    losses = torch.empty(M)
    text, example_ids = ids.new_empty(B, L), torch.zeros(B, dtype=torch.int64)
    return token_substitution_kernels.triton_launch(
        torch.empty(M, stride, dtype=dtype)[:, :V],
        torch.empty(V, dtype=dtype),
        MaskedRows(text, ids[first:], ids[first:], example_ids, ids.new_zeros(2)),
        TokenChoice(torch.arange(banned), top_k, 1.0, V - 1),
        1.0,
        (losses, ids.new_empty(M), text, torch.empty_like(losses)),
    )


def mask_launch(B, L, M, replacements=100):
    ids, more = torch.zeros(B, L, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64)
    replacement_ids = torch.arange(replacements) if replacements else None
    return mask_sampling.triton_launch(
        mask_sampling.MaskingInputs(ids, more[:B], more.new_zeros(2), 4, replacement_ids),
        ids.bool(),
        more,
        (torch.empty_like(ids), more.new_empty(M), more.new_empty(M)),
    )


def threshold_launches(B, L, replacements=100):
    ids, more = torch.zeros(B, L, dtype=torch.int64), torch.zeros(B + 1, dtype=torch.int64)
    replacement_ids = torch.arange(replacements) if replacements else None
    return threshold_masking.triton_launches(
        mask_sampling.MaskingInputs(ids, more[:B], more.new_zeros(2), 4, replacement_ids),
        ids,
        more[1:],
        more,
        mask_sampling.empty_outputs(ids, B * L),
    )


def dual_launch(M, B, C=3, first=0):
    labels = torch.zeros(B, dtype=torch.int64)
    losses, logits = torch.zeros(first + M)[first:], torch.zeros(B, C)
    return dual_loss_launch(
        DualInputs(losses, logits, labels, torch.ones(2), 0.5, 0.0, -100),
        (torch.empty(4), torch.empty(B, C)),
    )


def resources(cubin, tmp_path):
    """Registers per thread, and bytes of stack, which is where spilled registers go."""
    from triton import knobs

    (tmp_path / "cubin").write_bytes(cubin)
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", tmp_path / "cubin"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (used,) = re.findall(r"REG:(\d+) STACK:(\d+)", shown)
    return int(used[0]), int(used[1])


@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("V", [30522, 50265])
def test_row_kernel_fits_in_its_registers(V, top_k, dtype, capability, compile_for, tmp_path):
    launch = row_launch(V, dtype, top_k)
    compiled = compile_for(launch, capability)
    threads = launch.options["num_warps"] * 32
    registers, stack = resources(compiled.asm["cubin"], tmp_path)
    assert registers <= REGISTERS // (PROGRAMS_AT_A_TIME * threads)
    assert stack == 0
    vectors = launch.options["LANES"] // threads  # of 16 bytes, per thread and tile
    ptx = compiled.asm["ptx"]
    assert ptx.count("ld.global.v4") == 2 * 2 * vectors  # logits and bias in each of two sweeps
    # The compiler may emit a second sweep for ignored rows, which stores zeros.
    assert ptx.count("st.global.v4") in (vectors, 2 * vectors)
    # Stores of single elements: the tail, loss, log-sum-exp, and the token in two places.
    assert len(re.findall(r"st\.global(?!\.v4)", ptx)) == 5


@pytest.mark.parametrize("capability", [70, 80, 90])
def test_the_others_compile(capability, compile_for):
    masks = (mask_launch(2, 100, 9), mask_launch(2, 100, 9, 0))
    thresholds = (*threshold_launches(2, 100), *threshold_launches(2, 100, 0))
    for launch in (*masks, *thresholds, dual_launch(9, 2)):
        assert compile_for(launch, capability).asm["cubin"][:4] == b"\x7fELF"


def test_a_run_compiles_each_kernel_once(compile_for):
    """Nothing that changes from batch to batch needs another variant: M, B, L, start of a chunk."""
    batches = [(1, 1, 1), (2, 1, 16), (16, 16, 17), (17, 2, 128), (205, 32, 128), (64, 8, 100)]
    rows = {
        compile_for(row_launch(300, torch.float16, 4, M, B, L, banned, first), 80).hash
        for (M, B, L), banned, first in product(batches, (1, 2, 16, 32), (0, 1))
    }
    assert len(rows) == 1
    masks = {compile_for(mask_launch(B, L, M), 80).hash for M, B, L in batches}
    assert len(masks) == 1
    for kernel in (0, 1):
        launches = [threshold_launches(B, L)[kernel] for _, B, L in batches]
        assert len({compile_for(launch, 80).hash for launch in launches}) == 1
    dual = {
        compile_for(dual_launch(M, B, first=first), 80).hash
        for (M, B, _), first in product(batches, (0, 1))
    }
    assert len(dual) == 1
    # Texts of up to 512 tokens need three sizes of BLOCK.
    longer = {compile_for(mask_launch(2, L, 9), 80).hash for L in range(1, 513, 37)}
    assert len(masks | longer) == 3


def test_another_row_stride_or_way_to_ban_is_another_variant(compile_for):
    """The test above would notice other variants. Only a stride divisible by 16 allows vectors."""
    launches = [
        row_launch(300, torch.float16),
        row_launch(300, torch.float16, stride=300),
        row_launch(300, torch.float16, banned=33),
        row_launch(300, torch.float16, banned=0),
    ]
    compiled = [compile_for(launch, 80) for launch in launches]
    assert len({variant.hash for variant in compiled}) == 4
    vectors = [variant.asm["ptx"].count("ld.global.v4") for variant in compiled]
    assert vectors[1] < vectors[0] == vectors[2] == vectors[3]


def test_a_launch_copies_no_argument():
    """Contiguous arguments are passed to the kernel as they are."""
    logits, bias = torch.zeros(2, 64)[:, :50], torch.zeros(50)
    banned, ids = torch.arange(3), torch.zeros(1, 2, dtype=torch.int64)
    rows = MaskedRows(ids, *(torch.zeros(2, dtype=torch.int64) for _ in range(4)))
    outputs = (torch.empty(2), rows[1].new_empty(2), ids, torch.empty(2))
    launch = token_substitution_kernels.triton_launch(
        logits, bias, rows, TokenChoice(banned, 1, 1.0, None), 1.0, outputs
    )
    given = (logits, bias, *rows[1:], banned, *outputs)
    assert [t.data_ptr() for t in launch.arguments[: len(given)]] == [t.data_ptr() for t in given]
