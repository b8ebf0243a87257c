"""Runs the source of the CUDA kernels on the CPU, one fiber per thread (tests/ops/cuda_on_cpu).

This does not exercise the inline PTX of csrc/cuda/device.cuh, for which there is a stand-in.
"""

import ctypes
import mmap
import shutil
import subprocess
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from conftest import ROOT

from masktuning.ops import token_substitution_kernels
from masktuning.ops.backends import launch, select

HERE = ROOT / "tests" / "ops" / "cuda_on_cpu"
RUNNERS = ("threads", "accesses")
DEADLOCK, RACE = 2, 3


@cache
def build_folder():
    """A folder with the sources and the stand-in for device.cuh."""
    folder = Path(mkdtemp(prefix="cuda_on_cpu-"))
    for source in (*(ROOT / "csrc" / "cuda").glob("*.cu*"), *HERE.iterdir()):
        shutil.copy(source, folder / source.name)
    shutil.copy(ROOT / "csrc" / "philox.h", folder)
    return folder


def build(source):
    """Compiles one .cu file of the build folder to a library, and loads it."""
    folder = build_folder()
    library = folder / f"{Path(source).stem}.so"
    # Products and sums are not fused, as in the draw. -x tells the compiler that .cu is C++. The
    # memory accesses of the kernel are watched by accesses.cpp; those of the other files are not.
    options = "g++ -std=c++17 -O1 -ffp-contract=off -fPIC -w -fno-gnu-unique -c -x c++".split()
    watched = "-fsanitize=thread --param=tsan-instrument-func-entry-exit=0".split()
    kernel = f"{library}.o"
    subprocess.run([*options, *watched, source, "-o", kernel], cwd=folder, check=True)
    for name in RUNNERS:
        if not (folder / f"{name}.o").is_file():
            subprocess.run([*options, f"{name}.cpp", "-o", f"{name}.o"], cwd=folder, check=True)
    runners = [f"{name}.o" for name in RUNNERS]
    link = ["g++", "-shared", "-Wl,-Bsymbolic", kernel, *runners, "-ldl", "-o", str(library)]
    subprocess.run(link, cwd=folder, check=True)
    return ctypes.CDLL(str(library))


@cache
def library_of(kernel):
    for file, declared in launch.DECLARED.items():
        if kernel in declared.kernels:
            return _library(file)
    raise KeyError(kernel)


@cache
def _library(file):
    return build(f"{file}.cu")


def run(library, kernel, grid, threads, arguments, seed=0):
    return library.run_kernel(
        kernel.encode(), *grid, threads, arguments, ctypes.c_size_t(len(arguments)), seed
    )


def guarded(values, at_end):
    """A copy of a tensor just before an inaccessible page, or just after it if not `at_end`."""
    page = mmap.PAGESIZE
    size = values.numel() * values.itemsize
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mprotect = ctypes.CDLL(None).mprotect
    for forbidden in (start, start + page + pages):
        assert mprotect(ctypes.c_void_p(forbidden), ctypes.c_size_t(page), 0) == 0
    offset = page + (pages - size if at_end else 0)
    copy = torch.frombuffer(memory, dtype=values.dtype, count=values.numel(), offset=offset)
    return copy.view(values.shape).copy_(values)


@contextmanager
def emulated(processors=1, seed=0):
    """Makes the CUDA back end take CPU tensors, on an emulated GPU with so many processors."""
    started = []

    def start(device, kernel, grid, threads, arguments):
        started.append(kernel)
        assert run(library_of(kernel), kernel, grid, threads, arguments, seed) == 0, kernel

    kernels = token_substitution_kernels
    saved = launch.start, kernels._processors, select.choose
    launch.start, kernels._processors = start, lambda device: processors
    select.choose = lambda op, device: "cuda"
    try:
        yield started
    finally:
        launch.start, kernels._processors, select.choose = saved
