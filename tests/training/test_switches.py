"""Whatever makes a run faster changes neither its masks nor, beyond rounding, its losses."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from train_tiny import record_masks

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.methods import perturbation
from masktuning.ops import backends

# torch.compile looks at the gradients of its inputs, and keeps their warning from being shown.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

NAMES = {field.name for field in dataclasses.fields(MaskTuningArguments)}
# Newer versions of transformers have another name for it, and warn of the old one.
CHECKPOINTING = next(
    n for n in ("activation_checkpointing", "gradient_checkpointing") if n in NAMES
)
# Each switch with its values; the first ones together are the run that the others are compared to.
SWITCHES = {
    "train_sampling_strategy": ("random", "group_by_length"),
    "precision": ("fp32", "bf16"),
    "backend": ("reference", "cpp"),
    CHECKPOINTING: (False, True),
    "pad_to_multiple_of": (None, 16),
    "torch_compile": (False, True),
}
COMBINATIONS = [
    dict(zip(SWITCHES, values, strict=True)) for values in itertools.product(*SWITCHES.values())
]


def parameter(switches):
    """Compiling takes seconds, so most combinations with it run on demand."""
    rest = (switches["backend"], switches[CHECKPOINTING], switches["pad_to_multiple_of"])
    slow = switches["torch_compile"] and rest != ("cpp", False, None)
    name = "-".join(map(str, switches.values()))
    return pytest.param(switches, id=name, marks=[pytest.mark.slow] if slow else [])


TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def train(folder, **switches):
    """The masks of two epochs, and the mean of each loss over them, with weights that stay.

    Every text has one masked token and every batch as many texts, so that the mean over an epoch's
    steps is that over its texts, however they are batched.
    """
    masks = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturbation, "sample_masks", perturbation.sample_masks)
        record_masks(masks)
        trainer = MaskTuningTrainer(
            model=tiny_model("bert"),
            args=MaskTuningArguments(
                str(folder),
                learning_rate=0.0,
                num_train_epochs=2,
                per_device_train_batch_size=8,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                min_per_example=1,
                torch_compile_backend="eager" if switches["torch_compile"] else None,
                **switches,
            ),
            train_dataset=Dataset.from_list(examples(16, 3)),
            processing_class=tiny_tokenizer(),
        )
        trainer.train()
    logs = [log for log in trainer.state.log_history if "loss_mlm" in log]
    assert len(logs) == 4
    return masks, {name: np.mean([log[name] for log in logs]) for name in ("loss_mlm", "loss_cls")}


@pytest.fixture(autouse=True)
def no_graphs():
    """Leaves what was compiled to no other test."""
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train(tmp_path_factory.mktemp("plain"), **COMBINATIONS[0])


@pytest.mark.parametrize("switches", [parameter(one) for one in COMBINATIONS])
def test_masks_are_the_same_and_losses_within_tolerance(tmp_path, plain, switches):
    if reason := backends.available()[switches["backend"]]:
        pytest.skip(reason)
    masks, losses = train(tmp_path, **switches)
    assert masks == plain[0] and len(masks) == 32
    assert all(len(positions) == 1 for positions in masks.values())
    for name, value in losses.items():
        assert value == pytest.approx(plain[1][name], rel=TOLERANCE[switches["precision"]]), name
