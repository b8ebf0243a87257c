"""FSDP, and two processes that accelerate starts: the same training as in one process.

Accelerate shards no model on CPUs. PyTorch does: train_tiny.py makes accelerate believe that the
two gloo processes have GPUs.
"""

from types import SimpleNamespace

import pytest
import torch
from processes import ACCELERATE, TERMS, TORCHRUN, assert_same_steps, run_script
from safetensors.torch import load_file

from masktuning import MaskTuningArguments
from masktuning.config.errors import UsageError
from masktuning.training.resuming import train_or_resume
from masktuning.training.sharding import check_sharding

# Moments for a checkpoint to hold; the large epsilon leaves a gradient of rounding noise small.
ADAM = {"optim": "adamw_torch", "adam_epsilon": 1e-3, "learning_rate": 1e-2, "num_train_epochs": 2}
ADAM["class_weights"] = [0.5, 2.0, 1.0]  # whose sum over a step's labels is one over all processes
HALF = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "ddp_backend": "gloo"}
SAVED = {"family": "bart", "save_strategy": "steps", "save_steps": 3, "alpha": 0.6}
# With a number as alpha: the alpha that follows the gradients needs a backward pass per term.
FSDP = [
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_cpu_ram_efficient_loading", "false", "--dynamo_backend", "eager"),
]
WEIGHTS = ("model.safetensors", "mlm_head/model.safetensors")


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """BART, whose embedding has many names."""
    folder = tmp_path_factory.mktemp("one")
    options = {"perturbations": str(folder), **ADAM, **SAVED}
    return folder, run_script(folder, per_device_train_batch_size=16, **options)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    options = {"perturbations": str(folder), **ADAM, **SAVED, **HALF}
    return folder, run_script(folder, TORCHRUN, sharded=True, fsdp=True, **options)


def test_a_sharded_training_is_that_of_one_process(one_process, sharded):
    """Masks, losses, gradient norm, weights, checkpoint and logged texts."""
    (expected_folder, expected), (folder, found) = one_process, sharded
    assert_same_steps(found, expected, terms=TERMS[:4])
    assert found["masks"] == expected["masks"]
    for name in WEIGHTS:
        tensors = load_file(folder / "run" / "checkpoint-8" / name)
        wanted = load_file(expected_folder / "run" / "checkpoint-8" / name)
        assert tensors.keys() == wanted.keys()
        torch.testing.assert_close(tensors, wanted, rtol=1e-5, atol=1e-5)
    texts, wanted = (one / "perturbations.jsonl" for one in (folder, expected_folder))
    assert texts.read_text() == wanted.read_text() != ""


def test_a_sharded_training_resumes(sharded, tmp_path):
    folder, expected = sharded
    checkpoint = str(folder / "run" / "checkpoint-3")
    options = {"resume": checkpoint, "sharded": True, "fsdp": True, **ADAM, **HALF}
    assert (
        run_script(tmp_path, TORCHRUN, family="bart", alpha=0.6, **options)["weights"]
        == expected["weights"]
    )


@pytest.mark.parametrize("flags", [["--multi_gpu"], FSDP], ids=["ddp", "fsdp"])
def test_accelerate_launch_trains_the_same(one_process, tmp_path, flags):
    """With FSDP it would write shards alone, and with torch_compile want each length by itself."""
    expected_folder, expected = one_process
    launcher, sharded = [*ACCELERATE, *flags], flags is FSDP
    found = run_script(tmp_path, launcher, sharded=sharded, **ADAM, **SAVED, **HALF)
    assert_same_steps(found, expected, terms=TERMS[:4] if sharded else TERMS)
    assert found["masks"] == expected["masks"]
    for name in WEIGHTS:
        tensors = load_file(tmp_path / "run" / "checkpoint-8" / name)
        wanted = load_file(expected_folder / "run" / "checkpoint-8" / name)
        torch.testing.assert_close(tensors, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("launched", [False, True])
def test_sharding_that_would_not_happen_is_an_error(monkeypatch, launched):
    if launched:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = SimpleNamespace(fsdp=not launched, world_size=2)
    with pytest.raises(ValueError, match="fsdp: accelerate shards models on GPUs only"):
        check_sharding(args, SimpleNamespace(state=SimpleNamespace()))


def test_a_model_that_one_process_loads_is_an_error():
    state = SimpleNamespace(fsdp_plugin=SimpleNamespace(cpu_ram_efficient_loading=True))
    with pytest.raises(ValueError, match="fsdp: each process has to load the model"):
        check_sharding(SimpleNamespace(fsdp=True, world_size=2), SimpleNamespace(state=state))


def test_a_complete_sharded_run_is_not_measured_again(tmp_path):
    """Accelerate shards a model together with an optimizer only."""
    args = MaskTuningArguments(str(tmp_path), max_steps=4, use_cpu=True, report_to="none")
    trainer = SimpleNamespace(is_fsdp_enabled=True, train_dataset=range(64))
    run = SimpleNamespace(early_stopping_patience=None)
    job = SimpleNamespace(training=args, run=run, folder=tmp_path)
    (tmp_path / "trainer_state.json").write_text('{"global_step": 4}')
    with pytest.raises(UsageError, match="the run was complete; measure it again without --fsdp"):
        train_or_resume(job, trainer, str(tmp_path))
