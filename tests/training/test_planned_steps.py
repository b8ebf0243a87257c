"""The number of steps of a run, by which a resumed run is known to be complete."""

import json

import pytest
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from test_commands import command, files  # noqa: F401

from masktuning import MaskTuningArguments, MaskTuningTrainer, train
from masktuning.training.build import planned_steps


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("count", "batch_size", "accumulation", "epochs"),
    [(20, 8, 1, 2), (20, 8, 2, 1.5), (24, 8, 3, 1), (9, 8, 2, 2), (41, 4, 3, 2.2)],
)
def test_they_are_those_of_trainer(tmp_path, count, batch_size, accumulation, epochs, drop_last):
    args = MaskTuningArguments(
        tmp_path,
        method="finetuning",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
        dataloader_drop_last=drop_last,
        use_cpu=True,
    )
    rows = Dataset.from_list(examples(count, 1))
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"), args=args, train_dataset=rows, processing_class=tiny_tokenizer()
    )
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert planned_steps(args, count) == steps


def test_a_run_whose_batch_size_was_found_goes_on(files, tmp_path):  # noqa: F811
    """Its 12 steps per epoch are those of batches of 4, though the flag says 16."""
    words = command(
        files, output_dir=tmp_path, max_steps=-1, num_train_epochs=1, save_steps=6,
        method="finetuning", keep_optimizer_states=True,
    )  # fmt: skip
    small = ["--per_device_train_batch_size", "4"]
    train.main([*words, *small, "--max_steps", "6"])
    state = tmp_path / "checkpoint-6" / "trainer_state.json"
    assert json.loads(state.read_text())["train_batch_size"] == 4
    found = ["--per_device_train_batch_size", "16", "--auto_find_batch_size"]
    train.main([*words, *found, "--resume_from_checkpoint"])
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 12


def test_a_finished_run_that_left_out_a_last_batch_is_measured_again(
    files, tmp_path, capsys  # noqa: F811
):  # fmt: skip
    words = command(
        files, output_dir=tmp_path, max_steps=-1, num_train_epochs=1, method="finetuning",
        per_device_train_batch_size=20, dataloader_drop_last=True,
    )  # fmt: skip
    train.main(words)
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 2
    train.main([*words, "--resume_from_checkpoint"])
    assert "nothing is left to train" in capsys.readouterr().out
