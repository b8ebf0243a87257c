"""Tests run offline, on the CPU, with warnings as errors."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

# Before anything imports transformers or datasets.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# torch.compile keeps what it compiled under keys that do not hold ATEN_CPU_CAPABILITY: code for
# other vector instructions, from an earlier run, would compute garbage. Each run has its own.
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="inductor-")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# For `import families`: what several tests share lies in the folders of the tests.
folders = [ROOT / "tests", *(path for path in (ROOT / "tests").iterdir() if path.is_dir())]
sys.path[:0] = [str(path) for path in folders]


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenised data goes to a folder of this test run."""
    if importlib.util.find_spec("datasets") is None:
        return  # the ops and the GPU tests do without
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models next to the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data next to the repository")
    return SHARED
