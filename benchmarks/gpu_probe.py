"""Says on which GPU and with which versions gpu_check.sh runs, or in one line why it cannot.

python benchmarks/gpu_probe.py machine.json
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# A step that needs a missing package fails; the other steps run.
PACKAGES = (
    "accelerate",
    "datasets",
    "hypothesis",
    "pybind11",
    "pytest",
    "pytest_benchmark",
    "scipy",
    "setuptools",
    "transformers",
    "triton",
    "xdist",
)


def version(name: str) -> str:
    """The version of a distribution, or "not installed"."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    if not find_spec("torch"):
        sys.exit("torch is not installed")
    import torch

    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU")
    from timing import commit, driver_version, triton_version, write_json

    facts = {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton_version(),
        "transformers": version("transformers"),
        "setuptools": version("setuptools"),
        "python": platform.python_version(),
        "commit": commit(),
        "absent": [name for name in PACKAGES if not find_spec(name)],
    }
    write_json(sys.argv[1], facts)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
