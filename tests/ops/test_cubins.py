"""Images of the CUDA kernels: what NVRTC makes of the source, and where they are found."""

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

from masktuning.ops import backend, cuda, cuda_images, cuda_source, native
from masktuning.ops.cuda_images import ImageError

needs_nvrtc = pytest.mark.skipif(
    cuda_images.nvrtc_library() is None, reason="needs NVRTC: pip install '.[test]'"
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
    monkeypatch.setattr(cuda_images, "packaged_folders", lambda: [tmp_path / "packaged"])


def tile_of(kernel):
    """Threads, and vectors per thread, from the name of a row kernel."""
    return tuple(map(int, kernel.removesuffix("_bias").rpartition("_")[2].split("x")))


def register_bound(kernel):
    """65,536 registers among the blocks that __launch_bounds__ promises, in steps of 8."""
    if "_rows_" not in kernel:
        return 64
    threads, vectors = tile_of(kernel)
    blocks = {(128, 4): 4, (256, 4): 4, (512, 8): 2}.get((threads, vectors), 1)
    return min(255, 65536 // (threads * blocks) // 8 * 8)


@needs_nvrtc
@pytest.mark.parametrize("arch", ["sm_70", "sm_75", "sm_80", "sm_90"])
@pytest.mark.parametrize("op", cuda_source.OPS)
def test_every_kernel_fits_its_registers(op, arch):
    """Compiled as the launcher compiles: no stack, no spill, 16-byte accesses."""
    code, headers = cuda_source.sources()
    image, ptx, log = masktuning_C.nvrtc_compile(
        cuda_images.nvrtc_library(), f"{op}.cu", code[op], headers, arch
    )
    assert image[:4] == b"\x7fELF"
    used = {name: tuple(map(int, rest)) for name, *rest in _USE.findall(log)}
    assert used.keys() == set(cuda.KERNELS[op])
    for kernel, (stack, stores, loads, registers) in used.items():
        assert (stack, stores, loads) == (0, 0, 0), f"{kernel} spills on {arch}"
        assert registers <= register_bound(kernel), kernel

    bodies = dict(re.findall(r"\.visible \.entry (\w+)\((.*?)\n}", ptx, re.S))
    assert bodies.keys() == used.keys()
    for kernel in bodies if op == "token_substitution" else ():
        vectors = tile_of(kernel)[1]
        loads, stores = (bodies[kernel].count(f"{way}.global.v4") for way in ("ld", "st"))
        assert loads == (2 if kernel.endswith("_bias") else 1) * vectors, kernel
        assert stores >= (0 if kernel.startswith("split") else vectors), kernel


def test_the_tested_set_leaves_nvrtc_to_torch():
    """Every CUDA build of torch pins its NVRTC, and that for the V100 pins one of CUDA 12.6."""
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
            cuda_images.nvrtc_library(), "broken.cu", "int x = nothing;", {}, "sm_90"
        )
    with pytest.raises(RuntimeError, match="cannot load /nowhere/libnvrtc"):
        masktuning_C.nvrtc_compile("/nowhere/libnvrtc.so", "a.cu", "", {}, "sm_90")


@needs_nvrtc
def test_an_image_is_kept_and_a_corrupt_or_stale_one_made_anew(monkeypatch):
    op, arch = "mask_sampling", "sm_80"
    assert cuda_images.cached_image(op, arch) is None
    image = cuda_images.compile_image(op, arch)
    path = cuda_images.cache_folder() / cuda_source.image_name(op, arch)
    assert cuda_images.cached_image(op, arch) == image and path.is_file()

    path.write_bytes(path.read_bytes()[:-1] + b"x")  # one byte of a kernel
    assert cuda_images.cached_image(op, arch) is None
    path.write_bytes(b"")
    assert cuda_images.cached_image(op, arch) is None
    assert cuda_images.compile_image(op, arch) == image == cuda_images.cached_image(op, arch)

    code, headers = cuda_source.sources()
    changed = {**code, op: code[op] + "\n"}
    monkeypatch.setattr(cuda_source, "sources", lambda: (changed, headers))
    assert cuda_images.cached_image(op, arch) is None


def fake_module(monkeypatch, accepts=lambda image: True, compiled=b"\x7fELFnew"):
    """masktuning_C on a make-believe GPU; returns the calls that it got."""
    calls = []

    def load(device, image):
        calls.append(("load", image))
        if not accepts(image):
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
    monkeypatch.setattr(native, "module", lambda: fake)
    monkeypatch.setattr(cuda_images, "nvrtc_library", lambda: "libnvrtc.so")
    return calls


KERNELS = {"mask_sampling": ("sample_masks",)}


def test_packaged_before_cached_before_compiled(monkeypatch):
    calls = fake_module(monkeypatch)
    cuda_images.load(0, "sm_86", KERNELS)
    assert calls == [("compile", "mask_sampling.cu", "sm_86"), ("load", b"\x7fELFnew")]
    calls.clear()
    cuda_images.load(0, "sm_86", KERNELS)
    assert calls == [("load", b"\x7fELFnew")]  # the cache's
    calls.clear()
    for arch in ("sm_75", "sm_80", "sm_90"):
        path = cuda_images.packaged_folders()[0] / cuda_source.image_name("mask_sampling", arch)
        path.write_bytes(arch.encode())
    handles = cuda_images.load(0, "sm_86", KERNELS)
    assert calls == [("load", b"sm_80")]  # the same major version, and not above
    assert handles.keys() == {"sample_masks"}


def test_an_image_that_the_driver_refuses_is_compiled_anew(monkeypatch):
    calls = fake_module(monkeypatch, accepts=lambda image: image == b"\x7fELFnew")
    path = cuda_images.packaged_folders()[0] / cuda_source.image_name("mask_sampling", "sm_90")
    path.write_bytes(b"old")
    cuda_images.load(0, "sm_90", KERNELS)
    assert [call[0] for call in calls] == ["load", "compile", "load"]
    fake_module(monkeypatch, accepts=lambda image: False)
    with pytest.raises(ImageError, match="mask_sampling for sm_90: cuModuleLoadData: device"):
        cuda_images.load(0, "sm_90", KERNELS)


def test_no_image_and_no_nvrtc_is_told(monkeypatch):
    fake_module(monkeypatch)
    monkeypatch.setattr(cuda_images, "nvrtc_library", lambda: None)
    with pytest.raises(ImageError, match="no NVRTC to compile one"):
        cuda_images.load(0, "sm_70", KERNELS)


def test_a_cache_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path):
    fake_module(monkeypatch)
    (tmp_path / "cache").write_text("a file where the folder would be")
    with pytest.warns(RuntimeWarning, match="the compiled kernels are not kept"):
        cuda_images.load(0, "sm_90", KERNELS)


def test_a_gpu_without_an_image_falls_to_triton_then_the_reference(monkeypatch):
    def no_image(device):
        raise ImageError("no image for this GPU in the package, and no NVRTC to compile one")

    monkeypatch.delenv(backend.CUDA_SWITCH, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cuda, "load", no_image)
    gpu = torch.device("cuda", 0)
    backend.missing.cache_clear()
    backend._warn_once.cache_clear()
    try:
        assert "no NVRTC" in backend.available()["cuda"]
        with pytest.warns(
            RuntimeWarning, match=r"sample_masks on cuda runs on triton: cuda: no im"
        ):
            assert backend.choose("sample_masks", gpu) == "triton"
        assert backend.choose("sample_masks", gpu) == "triton"  # no second warning
        monkeypatch.setenv(backend.CUDA_SWITCH, "0")
        backend.missing.cache_clear()
        assert backend.available()["cuda"] == "MASKTUNING_CUDA=0 leaves it out"
        monkeypatch.setattr(cuda, "load", lambda device: {})
        monkeypatch.delenv(backend.CUDA_SWITCH)
        backend.missing.cache_clear()
        assert backend.choose("sample_masks", gpu) == "cuda"
    finally:
        backend.missing.cache_clear()
        backend._warn_once.cache_clear()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_packaged_images_are_built_where_nvcc_is(tmp_path):
    """The build's own function, into a folder of this test."""
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
    assert built == {cuda_source.image_name(op, a) for op in cuda_source.OPS for a in archs}
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in (tmp_path / "cubins").iterdir())
