"""Masks that the collator draws, in training: the epoch they are drawn for, and what they cost."""

import masktuning_C
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from test_host_reads import HostReads
from train_tiny import train

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.methods import perturbation

SETTINGS = {"num_train_epochs": 3, "per_device_train_batch_size": 4, "alpha": 0.3, "seed": 5}
THRESHOLD = round(0.2 * 2**32)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """`train` replaces this function."""
    monkeypatch.setattr(perturbation, "sample_masks", perturbation.sample_masks)


def expected_masks():
    """By the definition of `bernoulli`, of each epoch; texts without a masked token left out."""
    found = {}
    for row in examples(16, 3):
        i, ids = row["example_id"], row["input_ids"]
        for epoch in range(3):
            draws = [masktuning_C.philox4x32_10(t, i, epoch, 0, 5, 0)[0] for t in range(len(ids))]
            chosen = [t for t, token in enumerate(ids) if token >= 5 and draws[t] < THRESHOLD]
            if chosen:
                found[f"{i}/{epoch}"] = chosen
    return found


def trained(folder, **settings):
    settings = {"count": 16, "pair": False, "mask_policy": "bernoulli", **SETTINGS, **settings}
    return train(output_dir=str(folder), **settings)


@pytest.mark.parametrize(
    "workers",
    [
        {},
        {"dataloader_num_workers": 2},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    ],
    ids=["none", "two", "persistent"],
)
def test_the_epoch_is_that_of_the_step(tmp_path, workers):
    """Also in the processes of a data loader, which outlive the epoch if they persist."""
    assert trained(tmp_path, **workers)["masks"] == expected_masks()


@pytest.mark.parametrize("policy", ["bernoulli", "random"])
def test_each_pass_over_a_stream_is_an_epoch(tmp_path, policy):
    """Trainer itself counts no epoch of a stream before the second pass has begun."""
    whole = trained(tmp_path, mask_policy=policy)["masks"]
    passes = trained(tmp_path, mask_policy=policy, stream=True, max_steps=12)["masks"]
    assert passes == whole and {key.partition("/")[2] for key in passes} == {"0", "1", "2"}


@pytest.mark.parametrize("policy", ["bernoulli", "whole_word"])
def test_accumulated_batches_are_one_batch(tmp_path, policy):
    """The means are over the tokens that the whole step masks."""
    once = trained(tmp_path, mask_policy=policy, per_device_train_batch_size=8)
    parts = trained(
        tmp_path,
        mask_policy=policy,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    assert parts["masks"] == once["masks"]
    assert parts["weights"] == pytest.approx(once["weights"], rel=1e-3, abs=1e-5)


def test_a_resumed_run_draws_the_same_masks(tmp_path):
    """It stops within the second epoch."""
    settings = {"save_strategy": "steps", "save_steps": 6}
    whole = trained(tmp_path, **settings)
    resumed = trained(tmp_path, resume=str(tmp_path / "checkpoint-6"), **settings)
    assert resumed["weights"] == whole["weights"]
    later = {key for key in whole["masks"] if key.endswith("/2")}
    assert later <= resumed["masks"].keys()
    assert all(whole["masks"][key] == masks for key, masks in resumed["masks"].items())


@pytest.mark.parametrize("policy", ["bernoulli", "l3", "whole_word", "keywords"])
def test_a_step_waits_for_no_value(tmp_path, monkeypatch, policy):
    rows = [{**row, "mask_thresholds": [2**30] * len(row["input_ids"])} for row in examples(8, 1)]
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=MaskTuningArguments(
            str(tmp_path),
            mask_policy=policy,
            alpha=0.3,
            alpha_schedule="cosine",
            per_device_train_batch_size=4,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    stock, found, masked = trainer.training_step, [], []

    def watched(model, inputs, *rest):
        with HostReads() as reads:
            loss = stock(model, inputs, *rest)
        found.append(reads.found)
        masked.append(inputs["num_masked"])
        return loss

    monkeypatch.setattr(trainer, "training_step", watched)
    trainer.train()
    assert found == 6 * [[]] and sum(masked) > 0
    assert torch.isfinite(torch.cat([p.flatten() for p in trainer.model.parameters()])).all()
