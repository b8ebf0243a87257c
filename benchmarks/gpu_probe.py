"""Says which GPU and which versions gpu_check.sh runs on; fails in a line where it cannot run.

python benchmarks/gpu_probe.py machine.json
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

NEEDED = (
    "accelerate",
    "hypothesis",
    "numpy",
    "pybind11",
    "pytest",
    "scipy",
    "setuptools",
    "torch",
    "transformers",
)
OPTIONAL = ("datasets", "pytest_benchmark", "triton", "xdist")  # what needs one says so itself

if __name__ == "__main__":
    missing = [name for name in NEEDED if not find_spec(name)]
    reasons = [f"not installed: {', '.join(missing)}"] if missing else []
    if "torch" not in missing:
        import torch

        if not torch.cuda.is_available():
            reasons.insert(0, f"torch {torch.__version__} sees no GPU")
    if reasons:
        sys.exit("; ".join(reasons))
    import transformers
    from timing import commit, driver_version, triton_version, write_json

    facts = {
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": triton_version(),
        "transformers": transformers.__version__,
        "setuptools": metadata.version("setuptools"),
        "python": platform.python_version(),
        "commit": commit(),
        "absent": [name for name in OPTIONAL if not find_spec(name)],
    }
    write_json(sys.argv[1], facts)
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
