"""Data augmentation: the copies against the stock masked LM, their ids and their file."""

import pytest
import torch
from datasets import Dataset
from families import SPECIAL, examples, tiny_model, tiny_tokenizer
from oracles import expected_masks
from stock_step import stock_twins

from masktuning import MaskTuningTrainer
from masktuning.data.token_rows import TokenRows
from masktuning.methods import perturbed_texts as module
from masktuning.methods.augmentation import Augmentation, AugmentationOptions
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.training.arguments import arguments_for

SEED = 11


def method_around(model, seed=SEED, **options):
    method = Augmentation(model, tiny_tokenizer(), AugmentationOptions(**options))
    method.seed = seed
    return method


def expected_copies(model, rows, rate):
    """The stock masked LM's predictions at the masked places, in float64, text by text."""
    _, mlm = stock_twins(model)
    mlm.eval()
    banned = torch.tensor([i for i in SPECIAL.values() if i != SPECIAL["<unk>"]])
    copies = []
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        maskable = ~torch.isin(ids, torch.tensor([*SPECIAL.values()]))
        words = int(maskable.sum())
        count = min(words, max(1, int(words * rate + 0.5)))
        shown, positions, _ = expected_masks(
            ids, maskable, torch.tensor([row["example_id"]]), [count], SEED, 2**31
        )
        with torch.no_grad():
            logits = mlm(input_ids=shown).logits[0][positions]
        ids[0, positions] = logits.index_fill(1, banned, -torch.inf).argmax(1)
        copies.append(ids[0].tolist())
    return copies


@pytest.mark.parametrize("as_table", [True, False], ids=["datasets", "list"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_originals_are_followed_by_copies(family, as_table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_TOKENS", 64)  # several batches
    model, rows = tiny_model(family, dropout=True), examples(12, 3)
    train = Dataset.from_list(rows) if as_table else rows
    method = method_around(model.train())
    prepared = method.prepare(train, tmp_path)
    prepared = [prepared[i] for i in range(len(prepared))]
    assert prepared[:12] == rows and model.training
    copies = expected_copies(model, rows, 0.05)
    assert [row["input_ids"] for row in prepared[12:]] == copies
    same = sum(copy == row["input_ids"] for copy, row in zip(copies, rows, strict=True)) / 12
    assert "perturbing 12 training texts" in (said := capsys.readouterr().out)
    assert f"{same:.1%} of the perturbed texts are identical" in said
    for copy, row in zip(prepared[12:], rows, strict=True):
        assert copy["labels"] == row["labels"] and copy["attention_mask"] == row["attention_mask"]
    ids = [row["example_id"] for row in prepared]
    assert len(set(ids)) == 24 and ids[12:] == [i + 112 for i in range(100, 112)]


def test_left_padding(tmp_path):
    """The masks are others, since they depend on the place of a token in its row of the batch."""
    rows = examples(6, 3)
    method = method_around(tiny_model("bert"))
    method.tokenizer.padding_side = "left"
    made = module.perturbed_texts(method, MaskTuningOptions(0.0, mask_rate=0.3), rows, tmp_path)
    for row, new in zip(rows, made, strict=True):
        old = row["input_ids"]
        changed = sum(a != b for a, b in zip(old, new, strict=True))
        assert 0 < changed <= max(1, int((len(old) - 2) * 0.3 + 0.5))
        assert (new[0], new[-1]) == (old[0], old[-1])


def test_the_file_is_read_where_nothing_changed(tmp_path, monkeypatch):
    model, rows = tiny_model("bert"), examples(6, 3)
    made = list(method_around(model).prepare(rows, tmp_path))
    folder = tmp_path / module.FOLDER
    (file,) = folder.iterdir()
    assert file.suffix == ".safetensors"

    def unexpected(*arguments):
        raise AssertionError("texts were perturbed again")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_perturb", unexpected)
        assert list(method_around(model).prepare(rows, tmp_path)) == made
    method_around(model, seed=12).prepare(rows, tmp_path)
    method_around(model, top_k=3).prepare(rows, tmp_path)
    method_around(model).prepare(rows[1:], tmp_path)
    method_around(tiny_model("bert", seed=1)).prepare(rows, tmp_path)
    assert len(list(folder.iterdir())) == 5


def test_a_stop_while_the_file_is_written_leaves_none(tmp_path, monkeypatch):
    def stopped(tensors, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    rows = examples(4, 3)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "save_file", stopped)
        method_around(tiny_model("bert")).prepare(rows, tmp_path)
    assert not list((tmp_path / module.FOLDER).iterdir())
    assert len(method_around(tiny_model("bert")).prepare(rows, tmp_path)) == 8


def test_equal_rows():
    first = TokenRows.of([[1, 2], [3], [], [4, 5]])
    other = TokenRows.of([[1, 2], [7], [], [4, 9]])
    assert first.equal_rows(other).tolist() == [True, False, True, False]


def test_it_trains_on_both(tmp_path):
    args = arguments_for("augmentation")(
        str(tmp_path / "out"),
        seed=SEED,
        num_train_epochs=1,
        per_device_train_batch_size=4,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    trainer = MaskTuningTrainer(
        model=tiny_model("bert"),
        args=args,
        train_dataset=Dataset.from_list(examples(8, 3)),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.method.seed == SEED and len(trainer.train_dataset) == 16
    assert (tmp_path / "out" / "stages" / module.FOLDER).is_dir()
    vanilla = [
        p.clone() for p in trainer.method.model.mlm_head.mlm.cls.predictions.transform.parameters()
    ]
    assert trainer.train().global_step == 4
    after = trainer.method.model.mlm_head.mlm.cls.predictions.transform.parameters()
    assert all(torch.equal(old, new) for old, new in zip(vanilla, after, strict=True))


def test_an_option_out_of_range_is_one_line():
    with pytest.raises(ValueError, match="mask_rate is 2: give a share above 0, up to 1"):
        AugmentationOptions(mask_rate=2).check()
