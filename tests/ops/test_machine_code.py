"""The machine code of the CUDA row kernels: all loads of a row start before one is waited for.

A warp continues after a load, and stops at the first instruction that needs the loaded value. If an
instruction needed the first vector before the last one was requested, the row would take another
round trip to memory. The tests read the disassembly of what NVRTC compiles from the source.
"""

import re
import subprocess

import masktuning_C
import pytest
from test_cubins import needs_nvrtc, tile_of

from masktuning.ops.backends import cubins, cuda_source, launch

pytest.importorskip("triton")
from triton import knobs

KERNELS = [name for name in launch.DECLARED["token_substitution"].kernels if "_rows_" in name]
_LOAD = re.compile(r"LDG\.E\.128\S* R(\d+),")
_REGISTERS = re.compile(r"\bR(\d+)(\.64)?")


def listing(arch, folder):
    """The instructions of each kernel, in order."""
    code, headers = cuda_source.sources()
    op = "token_substitution"
    cubin, _, _ = masktuning_C.nvrtc_compile(
        cubins.nvrtc_library(), f"{op}.cu", code[op], headers, arch
    )
    path = folder / "rows.cubin"
    path.write_bytes(cubin)
    done = subprocess.run(
        [knobs.nvidia.nvdisasm.path, "-c", path], capture_output=True, text=True, check=True
    )
    parts = re.split(r"^\.text\.(\w+):$", done.stdout, flags=re.M)[1:]
    instructions = re.compile(r"/\*[0-9a-f]{4,}\*/\s+([^;]+);")
    return {
        name: instructions.findall(text) for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def loads_before_the_first_wait(instructions):
    """How many 16-byte loads are started before an instruction reads the result of one."""
    waiting, started = set(), 0
    for instruction in instructions:
        operands = instruction.partition(",")[2]
        read = set()
        for register, pair in _REGISTERS.findall(operands):
            read |= {int(register), int(register) + 1} if pair else {int(register)}
        if read & waiting:
            break
        if load := _LOAD.search(instruction):
            first = int(load[1])
            waiting |= set(range(first, first + 4))
            started += 1
    return started


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_all_loads_of_a_row_are_started_before_the_first_is_waited_for(arch, tmp_path):
    kernels = listing(arch, tmp_path)
    assert set(KERNELS) <= kernels.keys()
    for name in KERNELS:
        vectors = tile_of(name)[1]
        assert loads_before_the_first_wait(kernels[name]) >= vectors, name


def test_a_chain_of_loads_is_told_apart():
    together = ["LDG.E.128 R4, [R2.64]", "LDG.E.128 R8, [R2.64+0x10]", "FADD R0, R4, R8"]
    chained = ["LDG.E.128 R4, [R2.64]", "FADD R0, R4, R5", "LDG.E.128 R8, [R2.64+0x10]"]
    assert loads_before_the_first_wait(together) == 2
    assert loads_before_the_first_wait(chained) == 1
