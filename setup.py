"""Builds the torch-free module masktuning_C; everything else is in pyproject.toml.

torch is no build requirement: the module takes addresses and sizes, so one build serves every
torch and `pip install .` works with build isolation on any machine with a C++17 compiler.
"""

import sys
from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

ParallelCompile(needs_recompile=lambda *_: True).install()

setup(
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
    # Triton kernels live at the top, beside csrc; `kernels` alone would shadow another package.
    packages=[
        "masktuning",
        "masktuning.demo",
        "masktuning.kernels",
        "masktuning.methods",
        "masktuning.ops",
        "masktuning.tasks",
    ],
    package_dir={"masktuning.kernels": "kernels"},
)
