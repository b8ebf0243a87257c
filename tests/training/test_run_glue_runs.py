"""What run_glue's flags about the model, the tokenizer, padding and labels do in a training."""

import logging

import pytest
import torch
from datasets import Dataset
from families import config_of, examples, save_tiny, tiny_model, tiny_tokenizer
from safetensors.torch import load_file, save_file
from test_commands import command, files  # noqa: F401
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)
from transformers.utils import hub

from masktuning import MaskTuningArguments, MaskTuningModel, MaskTuningTrainer, train
from masktuning.config.errors import UsageError
from masktuning.data import tokenize
from masktuning.data.load import LabelledTexts
from masktuning.demo import EMBEDDED
from masktuning.modeling.loading import check_folder, load_classifier, load_tokenizer
from masktuning.training.build import load_model
from masktuning.training.job import read_job


def test_texts_are_padded_to_the_longest_length_there_may_be(
    files, tmp_path, monkeypatch, caplog  # noqa: F811
):  # fmt: skip
    """To that of the model where it takes less than max_seq_length; and it is told."""
    widths = {True: set(), False: set()}
    forward = MaskTuningModel.forward

    def recorded(self, input_ids, *arguments, **kwargs):
        widths[self.training].add(input_ids.shape[1])
        return forward(self, input_ids, *arguments, **kwargs)

    monkeypatch.setattr(MaskTuningModel, "forward", recorded)
    given = {"pad_to_max_length": True, "method": "finetuning", "max_steps": 1}
    with caplog.at_level(logging.WARNING, "masktuning"):
        train.main(command(files, output_dir=tmp_path / "a", max_seq_length=24, **given))
    assert widths == {True: {24}, False: {24}}
    assert "--pad_to_max_length: every text is padded to 24 tokens" in caplog.text
    with pytest.raises(UsageError, match="--pad_to_max_length and --pad_to_multiple_of exclude"):
        train.main(command(files, output_dir=tmp_path / "b", pad_to_multiple_of=8, **given))


def test_another_tokenizer_and_a_classifier_of_other_labels(files, tmp_path):  # noqa: F811
    three, other = tmp_path / "three", tmp_path / "other"
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config_of("bert", num_labels=3)).save_pretrained(
        three
    )
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 17
    tokenizer.save_pretrained(other)
    words = command(files, model_name_or_path=three, output_dir="x", method="finetuning")
    words += ["--tokenizer_name", str(other)]
    with pytest.raises(UsageError, match=r"one of 2 labels; .* --ignore_mismatched_sizes"):
        load_model(read_job(words, EMBEDDED))
    model, found = load_model(read_job([*words, "--ignore_mismatched_sizes"], EMBEDDED))
    assert found.model_max_length == 17
    assert model.classifier.classifier.weight.shape[0] == 2
    trained = AutoModelForSequenceClassification.from_pretrained(three)
    assert torch.equal(
        model.encoder.encoder.layer[0].output.dense.weight,
        trained.base_model.encoder.layer[0].output.dense.weight,
    )
    tokenizer.add_tokens([f"new{i}" for i in range(50)])
    tokenizer.save_pretrained(other)
    with pytest.raises(UsageError, match=r"the tokenizer has \d+ tokens, but the model has \d+:"):
        load_model(read_job([*words, "--ignore_mismatched_sizes"], EMBEDDED))


def test_a_classifier_of_other_labels_leaves_the_masked_lm(tmp_path):
    """Also where both heads come from one reading of one file."""
    torch.manual_seed(0)
    mlm = AutoModelForMaskedLM.from_config(config_of("bert"))
    tiny_model("bert", num_labels=3).classifier.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    head = {k: v.clone() for k, v in mlm.state_dict().items() if k.startswith("cls.predictions.t")}
    save_file({**load_file(path), **head}, path, {"format": "pt"})
    with pytest.raises((RuntimeError, ValueError), match="ignore_mismatched_sizes"):
        MaskTuningModel.from_pretrained(tmp_path, num_labels=2)
    model = MaskTuningModel.from_pretrained(tmp_path, num_labels=2, ignore_mismatched_sizes=True)
    assert model.classifier.classifier.weight.shape[0] == 2 and len(head) == 4
    for name, tensor in head.items():
        assert torch.equal(model.mlm_head.mlm.state_dict()[name], tensor), name


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A model of two versions in the hub's cache; the tokenizers know different lengths."""
    place = tmp_path / "models--us--tiny"
    for i, (branch, commit) in enumerate((("main", "a" * 40), ("older", "b" * 40))):
        folder = save_tiny(place / "snapshots" / commit, "bert", seed=i)
        tokenizer = tiny_tokenizer()
        tokenizer.model_max_length = 20 + i
        tokenizer.save_pretrained(folder)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / branch).write_text(commit)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path), raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return place / "snapshots"


@pytest.mark.parametrize("method", ["mask_tuning", "finetuning"])
def test_a_revision_is_that_of_model_and_tokenizer(files, on_the_hub, method):  # noqa: F811
    words = command(files, model_name_or_path="us/tiny", output_dir="x", method=method)
    for revision, i, commit in (
        ("older", 1, "b" * 40),
        (None, 0, "a" * 40),
        ("b" * 40, 1, "b" * 40),
    ):
        more = [] if revision is None else ["--model_revision", revision]
        model, tokenizer = load_model(read_job([*words, *more], EMBEDDED))
        assert tokenizer.model_max_length == 20 + i
        stock = AutoModelForMaskedLM.from_pretrained(on_the_hub / commit)
        expected = stock.base_model.encoder.layer[0].output.dense.weight
        assert torch.equal(model.encoder.encoder.layer[0].output.dense.weight, expected)
        if method == "mask_tuning":
            found = model.mlm_head.mlm.cls.predictions.transform.dense.weight
            assert torch.equal(found, stock.cls.predictions.transform.dense.weight)


def test_a_folder_has_no_revision(tmp_path):
    check_folder(str(tmp_path), "main")
    with pytest.raises(UsageError, match="--model_revision v2 is for models on the hub, and"):
        check_folder(str(tmp_path), "v2")
    with pytest.raises(UsageError, match="--model_revision v2 is for models on the hub"):
        load_classifier(str(tmp_path), revision="v2")
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        load_tokenizer(str(tmp_path), str(tmp_path / "nowhere"), None)


def test_the_cache_is_overwritten_only_if_asked_for(monkeypatch):
    tokenised = []
    tokenise = tokenize._tokenise

    def recorded(texts, *arguments):
        tokenised.append(texts.name)
        return tokenise(texts, *arguments)

    monkeypatch.setattr(tokenize, "_tokenise", recorded)
    texts = LabelledTexts("x", "train", [["w1 w2", "w3 w4 w5"]], [0, 1])
    found = []
    for overwrite in (False, False, True):
        (one,) = tokenize.encode_all([texts], tiny_tokenizer(), 9, overwrite=overwrite)
        found.append((len(tokenised), one.data[:]))
    assert [count for count, _ in found] == [1, 1, 2]
    assert found[0][1] == found[1][1] == found[2][1]


def test_scores_are_not_labels_in_training(files, tmp_path):  # noqa: F811
    """In a file with one line of the command; from Python with one of the trainer."""
    path = tmp_path / "scores.csv"
    path.write_text("text,label\nw1,0.5\nw2,1\n")
    for given in ({"train_file": path}, {"validation_file": path}):
        with pytest.raises(
            UsageError, match=r"scores\.csv, line \d: label .* regression"
        ) as caught:
            train.main(command(files, output_dir=tmp_path / "out", **given))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    rows = [{**row, "labels": float(row["labels"])} for row in examples(8, 1)]
    save_tiny(tmp_path / "model", "bert")
    trainer = MaskTuningTrainer(
        MaskTuningModel.from_pretrained(tmp_path / "model", num_labels=2),
        MaskTuningArguments(
            str(tmp_path / "run"), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny_tokenizer(),
    )
    with pytest.raises(ValueError, match="labels of train_dataset are not whole numbers: scores"):
        trainer.train()


def test_noise_on_embeddings_is_refused():
    with pytest.raises(ValueError, match="neftune_noise_alpha is not supported"):
        MaskTuningArguments("x", neftune_noise_alpha=5.0)
