"""Cubins of the CUDA kernels: what NVRTC makes of the source, and where they are found."""

import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import masktuning_C
import pytest
import torch
from conftest import ROOT
from packaging.requirements import Requirement

from masktuning.ops import backends
from masktuning.ops.backends import cubins, cuda_source, extension, launch, select
from masktuning.ops.backends.cubins import CubinError

FILES = sorted(cuda_source.sources()[0])
needs_nvrtc = pytest.mark.skipif(
    cubins.nvrtc_library() is None, reason="needs NVRTC: pip install '.[test]'"
)
_USE = re.compile(
    r"entry function '(\w+)' for.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers",
    re.S,
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "packaged").mkdir()
    monkeypatch.setattr(cubins, "packaged_folders", lambda: [tmp_path / "packaged"])


def tile_of(kernel):
    """Threads, and vectors per thread, from the name of a row kernel."""
    return tuple(map(int, kernel.removesuffix("_bias").rpartition("_")[2].split("x")))


def register_bound(kernel):
    """65,536 registers, shared by as many blocks as __launch_bounds__ states, in steps of 8."""
    if "_rows_" not in kernel:
        return 64
    threads, vectors = tile_of(kernel)
    blocks = {(128, 4): 4, (256, 4): 4, (512, 8): 2}.get((threads, vectors), 1)
    return min(255, 65536 // (threads * blocks) // 8 * 8)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("file", FILES)
def test_every_kernel_fits_its_registers(file, arch):
    """Compiled as the launcher does it, kernels use no stack, spill nothing and access 16 bytes."""
    code, headers = cuda_source.sources()
    cubin, ptx, log = masktuning_C.nvrtc_compile(
        cubins.nvrtc_library(), f"{file}.cu", code[file], headers, arch
    )
    assert cubin[:4] == b"\x7fELF"
    used = {name: tuple(map(int, rest)) for name, *rest in _USE.findall(log)}
    assert used.keys() == set(launch.DECLARED[file].kernels)
    for kernel, (stack, stores, loads, registers) in used.items():
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel} spills on {arch}"
        assert registers <= register_bound(kernel), kernel

    bodies = dict(re.findall(r"\.visible \.entry (\w+)\((.*?)\n}", ptx, re.S))
    assert bodies.keys() == used.keys()
    for kernel in bodies if file == "token_substitution" else ():
        vectors = tile_of(kernel)[1]
        loads, stores = (bodies[kernel].count(f"{way}.global.v4") for way in ("ld", "st"))
        assert loads == (2 if kernel.endswith("_bias") else 1) * vectors, kernel
        assert stores >= (0 if kernel.startswith("split") else vectors), kernel


def test_the_tested_set_leaves_nvrtc_to_torch():
    """Every CUDA build of torch pins its NVRTC; the build for the V100 pins that of CUDA 12.6."""
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()
            if line and not line.startswith("#")]  # fmt: skip
    assert not [pin for pin in pins if pin.name.startswith("nvidia-")]
    torch_pin = next(pin for pin in pins if pin.name == "torch")
    assert torch_pin.specifier.contains("2.13.0+cu126")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = map(Requirement, extras["optional-dependencies"]["test"])
    nvrtc = next(each for each in wanted if each.name == "nvidia-cuda-nvrtc-cu12")
    assert nvrtc.specifier.contains("12.6.77")


@needs_nvrtc
def test_a_compiler_error_is_told():
    with pytest.raises(RuntimeError, match=r"cannot compile broken.cu for sm_90(.|\n)*undefined"):
        masktuning_C.nvrtc_compile(
            cubins.nvrtc_library(), "broken.cu", "int x = nothing;", {}, "sm_90"
        )
    with pytest.raises(RuntimeError, match="cannot load /nowhere/libnvrtc"):
        masktuning_C.nvrtc_compile("/nowhere/libnvrtc.so", "a.cu", "", {}, "sm_90")


@needs_nvrtc
def test_a_cubin_is_cached_and_a_corrupt_or_stale_one_replaced(monkeypatch):
    file, arch = "mask_sampling", "sm_80"
    assert cubins.cached_cubin(file, arch) is None
    cubin = cubins.compile_cubin(file, arch)
    path = cubins.cache_folder() / cuda_source.cubin_name(file, arch)
    assert cubins.cached_cubin(file, arch) == cubin and path.is_file()

    path.write_bytes(path.read_bytes()[:-1] + b"x")  # with another last byte
    assert cubins.cached_cubin(file, arch) is None
    path.write_bytes(b"")
    assert cubins.cached_cubin(file, arch) is None
    assert cubins.compile_cubin(file, arch) == cubin == cubins.cached_cubin(file, arch)

    code, headers = cuda_source.sources()
    changed = {**code, file: code[file] + "\n"}
    monkeypatch.setattr(cuda_source, "sources", lambda: (changed, headers))
    assert cubins.cached_cubin(file, arch) is None


def fake_module(monkeypatch, accepts=lambda cubin: True, compiled=b"\x7fELFnew"):
    """Replaces masktuning_C by one with an emulated GPU; returns the list of the calls to it."""
    calls = []

    def load(device, cubin):
        calls.append(("load", cubin))
        if not accepts(cubin):
            raise RuntimeError("cuModuleLoadData: device kernel image is invalid (200)")
        return 7

    def compile_source(library, name, source, headers, arch):
        calls.append(("compile", name, arch))
        return compiled, "", ""

    fake = SimpleNamespace(
        cuda_load=load,
        nvrtc_compile=compile_source,
        cuda_function=lambda device, module, name: hash(name),
    )
    monkeypatch.setattr(extension, "module", lambda: fake)
    monkeypatch.setattr(cubins, "nvrtc_library", lambda: "libnvrtc.so")
    return calls


KERNELS = {"mask_sampling": ("sample_masks",)}


def test_packaged_before_cached_before_compiled(monkeypatch):
    calls = fake_module(monkeypatch)
    cubins.load(0, "sm_86", KERNELS)
    assert calls == [("compile", "mask_sampling.cu", "sm_86"), ("load", b"\x7fELFnew")]
    calls.clear()
    cubins.load(0, "sm_86", KERNELS)
    assert calls == [("load", b"\x7fELFnew")]  # from the cache
    calls.clear()
    for arch in ("sm_75", "sm_80", "sm_90"):
        path = cubins.packaged_folders()[0] / cuda_source.cubin_name("mask_sampling", arch)
        path.write_bytes(arch.encode())
    handles = cubins.load(0, "sm_86", KERNELS)
    assert calls == [("load", b"sm_80")]  # of the same major version, and not a later minor one
    assert handles.keys() == {"sample_masks"}


def test_a_cubin_that_the_driver_refuses_is_compiled_again(monkeypatch):
    calls = fake_module(monkeypatch, accepts=lambda cubin: cubin == b"\x7fELFnew")
    path = cubins.packaged_folders()[0] / cuda_source.cubin_name("mask_sampling", "sm_90")
    path.write_bytes(b"old")
    cubins.load(0, "sm_90", KERNELS)
    assert [call[0] for call in calls] == ["load", "compile", "load"]
    fake_module(monkeypatch, accepts=lambda cubin: False)
    with pytest.raises(CubinError, match="mask_sampling for sm_90: cuModuleLoadData: device"):
        cubins.load(0, "sm_90", KERNELS)


def test_no_cubin_and_no_nvrtc_is_told(monkeypatch):
    fake_module(monkeypatch)
    monkeypatch.setattr(cubins, "nvrtc_library", lambda: None)
    with pytest.raises(CubinError, match="no NVRTC to compile one"):
        cubins.load(0, "sm_70", KERNELS)


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    fake_module(monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder would be")
    with pytest.warns(RuntimeWarning, match="the compiled kernels are not kept"):
        cubins.load(0, "sm_90", KERNELS)


def test_a_gpu_without_a_cubin_falls_to_triton_then_the_reference(monkeypatch):
    def no_cubin(device):
        raise CubinError("no cubin for this GPU in the package, and no NVRTC to compile one")

    monkeypatch.delenv(backends.CUDA_SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(launch, "load", no_cubin)
    gpu = torch.device("cuda", 0)
    select.unavailable_reason.cache_clear()
    select._warn_once.cache_clear()
    try:
        assert "no NVRTC" in backends.available()["cuda"]
        with pytest.warns(
            RuntimeWarning, match=r"sample_masks on cuda runs on triton: cuda: no cubin"
        ):
            assert backends.choose("sample_masks", gpu) == "triton"
        assert backends.choose("sample_masks", gpu) == "triton"  # no second warning
        monkeypatch.setenv(backends.CUDA_SWITCH, "0")
        select.unavailable_reason.cache_clear()
        assert backends.available()["cuda"] == "MASKTUNING_CUDA=0 disables it"
        monkeypatch.setattr(launch, "load", lambda device: {})
        monkeypatch.delenv(backends.CUDA_SWITCH)
        select.unavailable_reason.cache_clear()
        assert backends.choose("sample_masks", gpu) == "cuda"
    finally:
        select.unavailable_reason.cache_clear()
        select._warn_once.cache_clear()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_packaged_cubins_are_built_where_nvcc_is(tmp_path):
    """Calls the function of the build, with a folder of this test."""
    code = (
        "import sys, setuptools; from pathlib import Path; setuptools.setup = lambda **_: None; "
        "sys.path.insert(0, '.'); import setup; "
        "setup.build_cubins(setup.find_nvcc(), Path(sys.argv[1]) / 'cubins')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    built = {path.name for path in (tmp_path / "cubins").iterdir()}
    archs = {name.rpartition("-")[2].removesuffix(".cubin") for name in built}
    assert {"sm_75", "sm_80", "sm_90"} <= archs
    assert built == {cuda_source.cubin_name(file, a) for file in FILES for a in archs}
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in (tmp_path / "cubins").iterdir())
