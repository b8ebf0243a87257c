"""The Triton kernels without a GPU: run by the interpreter, and compiled for GPUs.

tests/test_gpu.py runs them where there is a GPU.
"""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
from conftest import ROOT

pytest.importorskip("triton")
ROWS = {
    **dict.fromkeys(("losses", "lse"), "*fp32"),
    **dict.fromkeys(
        ("positions", "targets", "example_ids", "rng", "banned", "tokens", "input_ids"), "*i64"
    ),
    **dict.fromkeys(("V", "limit", "row_stride", "BL", "L", "N"), "i32"),
    **dict.fromkeys(("draw_scale", "gradient_scale"), "fp32"),
}


def test_under_the_interpreter():
    """In a process of its own: the interpreter takes the place of the compiler for good."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/interpreted_triton.py"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


BLOCK = 8192  # of masktuning/ops/triton.py


def spilled_bytes(ptx, capability):
    """What Triton's own ptxas says of the register spills."""
    from triton import knobs

    arch = "sm_90a" if capability == 90 else f"sm_{capability}"  # as the PTX says
    done = subprocess.run(
        [knobs.nvidia.ptxas.path, "-v", f"-arch={arch}", "-o", os.devnull, "/dev/stdin"],
        input=ptx,
        capture_output=True,
        text=True,
        check=True,
    )
    return sum(map(int, re.findall(r"(\d+) bytes spill", done.stderr)))


def compile_for(capability, kernel, signature, **constants):
    """The PTX of a kernel; pointers, row stride and limit are multiples of 16, as in use."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    aligned = {"limit", "row_stride"} | {n for n, kind in signature.items() if kind[0] == "*"}
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned}
    source = ASTSource(
        kernel,
        {name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs=even,
    )
    options = {"num_warps": 16, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm


@pytest.mark.parametrize("capability", [70, 80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("name", ["substitute_rows", "substitute_long_rows"])
def test_row_kernels_compile_with_wide_accesses_and_no_spill(name, top_k, dtype, capability):
    kernel = getattr(import_module("masktuning.kernels.token_substitution"), name)
    signature = {"logits": f"*{dtype}", "bias": f"*{dtype}", **ROWS}
    constants = {"TOP_K": top_k, "K": top_k, "BLOCK": BLOCK, "HAS_BIAS": True, "GRADIENT": True}
    asm = compile_for(capability, kernel, signature, **constants)
    assert spilled_bytes(asm["ptx"], capability) == 0
    vectors = BLOCK * (4 if dtype == "fp32" else 2) // (16 * 32 * 16)  # of 16 bytes, a thread
    passes = 1 if name == "substitute_rows" else 2
    assert asm["ptx"].count("ld.global.v4") == passes * vectors
    assert asm["ptx"].count("st.global.v4") == vectors
    assert asm["cubin"][:4] == b"\x7fELF"


@pytest.mark.parametrize("capability", [70, 80, 90])
def test_the_others_compile(capability):
    sample = import_module("masktuning.kernels.mask_sampling").sample_masks
    ids = ("input_ids", "example_ids", "offsets", "rng", "replacement_ids", "masked_ids")
    signature = {
        **dict.fromkeys((*ids, "positions", "targets"), "*i64"),
        **dict.fromkeys(("B", "L", "N", "M", "mask_token_id"), "i32"),
        "maskable": "*i1",
    }
    assert compile_for(capability, sample, signature, BLOCK=128, CORRUPT=True)["cubin"]
    dual = import_module("masktuning.kernels.dual_cross_entropy").dual_cross_entropy
    signature = {
        **dict.fromkeys(("losses", "denominators", "terms", "gradient"), "*fp32"),
        **dict.fromkeys(("M", "B", "C", "ignore_index"), "i32"),
        **dict.fromkeys(("alpha", "label_smoothing"), "fp32"),
        "labels": "*i64",
        "logits": "*fp16",
    }
    assert compile_for(capability, dual, signature, ROWS=128, CLASSES=4)["cubin"]
