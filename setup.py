"""Builds the torch-free module masktuning_C; everything else is in pyproject.toml.

torch is not a build requirement: the module takes addresses and sizes, so one build serves every
torch and `pip install .` works with build isolation on any machine with a C++17 compiler. Where
nvcc is found, the CUDA kernels are compiled too; otherwise NVRTC compiles them on first use.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import setup

ParallelCompile(needs_recompile=lambda *_: True).install()

spec = importlib.util.spec_from_file_location(
    "cuda_source", "masktuning/ops/backends/cuda_source.py"
)
assert spec is not None and spec.loader is not None
cuda_source = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cuda_source)


def find_nvcc() -> str | None:
    """nvcc in CUDA_HOME or on the path; None if there is none, or MASKTUNING_CUDA is 0."""
    if os.environ.get("MASKTUNING_CUDA") == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    return shutil.which("nvcc", path=f"{home}/bin" if home else None)


def build_cubins(nvcc: str, folder: Path) -> None:
    """Compiles every .cu file for each architecture that this nvcc knows."""
    folder.mkdir(parents=True)
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True)
    archs = [arch for arch in cuda_source.ARCHITECTURES if arch in known.stdout.split()]

    def compile_one(job: tuple[str, str]) -> None:
        file, arch = job
        target = folder / cuda_source.cubin_name(file, arch)
        options = ["-cubin", f"-arch={arch}", "-std=c++17", "-Icsrc", "-o", str(target)]
        subprocess.run([nvcc, *options, f"csrc/cuda/{file}.cu"], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        files = cuda_source.sources()[0]
        list(pool.map(compile_one, [(file, arch) for file in files for arch in archs]))
    print(f"CUDA cubins for {', '.join(archs)} by {nvcc}")


class BuildWithCubins(build_ext):
    """Builds the C++ module, then the cubins next to the package's files."""

    def run(self) -> None:
        super().run()
        root = Path() if self.inplace or self.editable_mode else Path(self.build_lib)
        folder, nvcc = root / "masktuning" / "cubins", find_nvcc()
        shutil.rmtree(folder, ignore_errors=True)  # cubins of an earlier build
        if nvcc is None:
            print("no nvcc, or MASKTUNING_CUDA=0: CUDA kernels will be compiled on first use")
            return
        try:
            build_cubins(nvcc, folder)
        except (OSError, subprocess.CalledProcessError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            print(f"{nvcc} failed ({error}): CUDA kernels will be compiled on first use")


setup(
    cmdclass={"build_ext": BuildWithCubins},
    ext_modules=[
        Pybind11Extension(
            "masktuning_C",
            sorted(glob("csrc/**/*.cpp", recursive=True)),
            include_dirs=["csrc"],
            depends=sorted(glob("csrc/**/*.h", recursive=True)),
            cxx_std=17,
            # -ffp-contract=off: the substitution draw must round as PyTorch does, on every CPU.
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-pthread"],
            extra_link_args=["-pthread", "-ldl"] if sys.platform == "linux" else ["-pthread"],
        )
    ],
    # Triton kernels and CUDA source live at the top; `kernels` alone would shadow another package.
    packages=[
        "masktuning",
        "masktuning.config",
        "masktuning.csrc",
        "masktuning.data",
        "masktuning.demo",
        "masktuning.demo.pretrain",
        "masktuning.evaluation",
        "masktuning.evaluation.fewshot",
        "masktuning.experiments",
        "masktuning.experiments.papers",
        "masktuning.kernels",
        "masktuning.methods",
        "masktuning.methods.bias",
        "masktuning.methods.cuts",
        "masktuning.methods.masks",
        "masktuning.methods.multi_task",
        "masktuning.methods.perturbations",
        "masktuning.modeling",
        "masktuning.ops",
        "masktuning.ops.backends",
        "masktuning.tasks",
        "masktuning.training",
    ],
    package_dir={"masktuning.csrc": "csrc", "masktuning.kernels": "kernels"},
)
