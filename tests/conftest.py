"""Tests run offline, on the CPU, with warnings as errors."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

# Before anything imports transformers or datasets.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT / "tests"))  # for `import families`


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tokenised data goes to a folder of this test run."""
    if importlib.util.find_spec("datasets") is None:
        return  # the ops and the GPU tests do without
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture
def shared() -> Path:
    """The folder of real data and models beside the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs the real data beside the repository")
    return SHARED
