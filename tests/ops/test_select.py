"""Which back ends exist, which one an op uses, and how one is forced."""

import masktuning_C
import pytest
import torch

from masktuning.ops import backends
from masktuning.ops.backends import extension, select


def test_a_stale_extension_is_refused(monkeypatch):
    monkeypatch.setattr(masktuning_C, "ABI", 0)
    extension.find.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="rebuild it with `pip install"):
            assert extension.find() is None
    finally:
        extension.find.cache_clear()


def test_a_missing_back_end_is_an_error():
    with pytest.raises(backends.BackendError, match="'cuda' is not available here"):
        backends.check("cuda")
    with pytest.raises(backends.BackendError, match="unknown back end 'cdua'"):
        backends.check("cdua")


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((9, 0), ["sm_80", "sm_90"], True),
        ((8, 6), ["sm_80", "sm_90"], True),  # a later minor version runs the same machine code
        ((8, 0), ["sm_86", "sm_90"], False),
        ((7, 0), ["sm_75", "sm_80", "compute_120"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
    ],
)
def test_a_torch_without_code_for_the_gpu_is_named(capability, built_for, runs):
    reason = backends.missing_gpu_code(capability, built_for)
    assert (reason == "") == runs
    assert runs or f"sm_{10 * capability[0] + capability[1]}" in reason


def test_the_environment_chooses_the_back_end(monkeypatch):
    cpu = torch.device("cpu")
    assert backends.choose("sample_masks", cpu) == "cpp"
    monkeypatch.setenv("MASKTUNING_BACKEND", "reference")
    assert backends.choose("sample_masks", cpu) == "reference"
    with backends.use("cpp"):
        assert backends.choose("sample_masks", cpu) == "cpp"
    with backends.use("auto"):
        assert backends.choose("sample_masks", cpu) == "reference"
    monkeypatch.setenv("MASKTUNING_BACKEND", "cuda")
    with pytest.raises(backends.BackendError):
        backends.choose("sample_masks", cpu)


def test_describe_says_why_an_op_takes_a_slower_path(monkeypatch):
    assert {row["why"] for row in backends.describe() if row["device"] == "cpu"} == {""}
    monkeypatch.setenv("MASKTUNING_BACKEND", "reference")
    rows = [row for row in backends.describe() if row["device"] == "cpu"]
    assert {row["why"] for row in rows} == {"MASKTUNING_BACKEND asks for it"}
    gpu = torch.device("cuda", 0)
    reasons = {"cuda": "no cubin for this GPU", "triton": ""}
    monkeypatch.setattr(select, "unavailable_reason", lambda name, device: reasons[name])
    assert select._why("sample_masks", gpu, "triton") == "cuda: no cubin for this GPU"
    monkeypatch.setitem(select.PREFERRED, "an_op", {"cpu": ("cpp",)})
    assert select._why("an_op", gpu, "reference") == "it has no kernel for cuda"


def test_auto_warns_once_about_a_slower_back_end(monkeypatch):
    monkeypatch.setattr(extension, "find", lambda: None)
    select.unavailable_reason.cache_clear()
    select._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"runs on the PyTorch reference: cpp: masktuning_C"):
        assert backends.choose("sample_masks", torch.device("cpu")) == "reference"
    assert backends.choose("sample_masks", torch.device("cpu")) == "reference"  # no second warning
    select._warn_once.cache_clear()
    select.unavailable_reason.cache_clear()
