"""Batches of similar length are the default; the precision is what was asked for."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from torch.utils.data import RandomSampler

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.data.collator import PaddingCollator
from masktuning.training import precision


def arguments(folder, **options):
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        "num_train_epochs": 1,
    }
    return MaskTuningArguments(**{**settings, **options})


def trainer_of(folder, rows, collator=None, **options):
    return MaskTuningTrainer(
        model=tiny_model("bert"),
        args=arguments(folder, **options),
        train_dataset=rows,
        data_collator=collator,
        processing_class=tiny_tokenizer(),
    )


def padding_share(trainer):
    """The share of padding among the tokens of an epoch's batches."""
    ids = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    return np.mean(np.concatenate([(one == 1).numpy().ravel() for one in ids]))


def epoch_of_ids(trainer, epoch):
    trainer.state.epoch = epoch
    return [batch["example_ids"].tolist() for batch in trainer.get_train_dataloader()]


def test_batches_are_of_similar_length_unless_asked_otherwise(tmp_path):
    rows = Dataset.from_list(examples(256, 1))
    similar = padding_share(trainer_of(tmp_path, rows))
    random = padding_share(trainer_of(tmp_path, rows, train_sampling_strategy="random"))
    assert similar < 0.1 < 0.3 < random


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only(tmp_path):
    rows = Dataset.from_list(examples(64, 1))
    trainer = trainer_of(tmp_path, rows, seed=5)
    first, second = epoch_of_ids(trainer, 0.0), epoch_of_ids(trainer, 1.0)
    assert first != second
    torch.manual_seed(99)  # the state of torch's own generator plays no part
    again = trainer_of(tmp_path, rows, seed=5)
    # As when a run is resumed in the middle of an epoch: the state tells how far it is.
    assert epoch_of_ids(again, 1.4) == second and epoch_of_ids(again, 0.0) == first
    assert epoch_of_ids(trainer_of(tmp_path, rows, seed=6), 0.0) != first
    assert epoch_of_ids(trainer_of(tmp_path, rows, seed=6, data_seed=5), 0.0) == first


@pytest.mark.parametrize("count", [1, 5])
def test_fewer_rows_than_a_batch(tmp_path, count):
    trainer = trainer_of(tmp_path, Dataset.from_list(examples(count, 1)))
    trainer.train()
    assert trainer.state.global_step == 1
    assert np.isfinite(trainer.state.log_history[0]["loss"])


def test_a_stream_is_trained_on_in_its_own_order(tmp_path, caplog):
    rows = Dataset.from_list(examples(32, 1))
    with caplog.at_level(logging.WARNING, "masktuning"):
        trainer = trainer_of(tmp_path, rows.to_iterable_dataset(), max_steps=3)
        trainer.train()
    assert trainer.state.global_step == 3
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "train_dataset is a stream: its batches are made of texts in the order in which they "
        "come, not of texts of similar length"
    ]
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["example_ids"].tolist() == rows["example_id"][:8]


class Tokenizing(PaddingCollator):
    """Tokenizes as it collates, so that rows have no lengths before."""

    def __call__(self, rows):
        encoded = self.tokenizer([row["text"] for row in rows])["input_ids"]
        rest = [{k: v for k, v in row.items() if k != "text"} for row in rows]
        return super().__call__(
            [{"input_ids": ids, **row} for ids, row in zip(encoded, rest, strict=True)]
        )


def test_rows_without_lengths_make_random_batches(tmp_path, caplog):
    rows = [{"text": f"w{i} w2", "labels": i % 2} for i in range(16)]
    with caplog.at_level(logging.WARNING, "masktuning"):
        trainer = trainer_of(tmp_path, rows, collator=Tokenizing(tiny_tokenizer()))
        assert isinstance(trainer._get_train_sampler(), RandomSampler)
        trainer.train()
    assert trainer.state.global_step == 2
    assert "neither length nor input_ids" in caplog.text


@pytest.mark.parametrize(
    ("given", "bf16", "fp16"),
    [(None, False, False), ("fp32", False, False), ("bf16", True, False)],
)
def test_a_precision_is_a_name_for_the_flags(tmp_path, given, bf16, fp16):
    made = arguments(tmp_path, precision=given)
    assert (made.bf16, made.fp16) == (bf16, fp16)


def test_precision_and_flags_may_not_contradict(tmp_path):
    with pytest.raises(ValueError, match="precision fp32 and bf16 contradict"):
        arguments(tmp_path, precision="fp32", bf16=True)
    assert arguments(tmp_path, precision="bf16", bf16=True).bf16


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "wanted"),
    [(False, False, "fp32"), (False, True, "bf16"), (True, False, "bf16")],
)
def test_auto_follows_the_instructions_of_the_cpu(
    tmp_path, monkeypatch, caplog, amx, avx512_bf16, wanted
):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    with caplog.at_level(logging.WARNING, "masktuning"):
        trainer = trainer_of(
            tmp_path, Dataset.from_list(examples(8, 1)), precision="auto", use_cpu=False
        )
    assert trainer.args.bf16 == (wanted == "bf16") and not trainer.args.fp16
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and said[0].startswith(f"precision auto: training in {wanted}, since")


@pytest.mark.parametrize(("capability", "wanted"), [((7, 0), "fp32"), ((8, 0), "bf16")])
def test_auto_follows_the_gpu(monkeypatch, capability, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or capability >= (8, 0),
    )
    assert precision.automatic()[0] == wanted
    assert precision.automatic(use_cpu=True)[1].startswith("this CPU")
