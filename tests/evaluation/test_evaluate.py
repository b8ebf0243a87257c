"""The command `evaluate`: label names, lengths, protocols, HANS, and any Trainer's checkpoint."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from layouts import HANS, NLI, REVIEWS, write_layouts
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from masktuning import evaluate
from masktuning.config.errors import UsageError


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"))


def save_classifier(folder, labels, length=60):
    model = tiny_model(
        "bert",
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        max_position_embeddings=length,
    ).classifier
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = length
    tokenizer.save_pretrained(folder)
    words = [" ".join(f"w{(7 * i + j) % 90}" for j in range(300)) for i in range(20)]
    batch = tokenizer(words, truncation=True, max_length=min(length, 128), return_tensors="pt")
    with torch.no_grad():  # so that each label is predicted for some text
        model.classifier.bias -= model.eval()(**batch).logits.median(0).values
    model.save_pretrained(folder)
    return tokenizer


def measure(folder, data, out, *words):
    """results.json of one call of the command."""
    evaluate.main(
        ["--model_name_or_path", str(folder), "--data_dir", str(data), "--output_dir", str(out)]
        + [str(word) for word in words]
    )
    return json.loads((out / "results.json").read_text())


def stock_predictions(folder, tokenizer, *columns, length=60):
    """The stock classifier's label names, one text at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    predictions = []
    for texts in zip(*columns, strict=True):
        batch = tokenizer(*texts, truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            predictions.append(model.config.id2label[int(model(**batch).logits.argmax())])
    return predictions


@pytest.mark.parametrize(
    "labels",
    [["entailment", "neutral", "contradiction"], ["CONTRADICTION", "Entailment", "neutral"]],
)
def test_labels_are_mapped_by_name_and_collapsed_for_hans(data, tmp_path, labels):
    tokenizer = save_classifier(tmp_path / "model", labels)
    sets = ["--task", "mnli", "--sets", "anli_r1", "hans", "dev_matched"]
    results = measure(tmp_path / "model", data, tmp_path / "out", *sets)
    columns = [row[0] for row in NLI], [row[1] for row in NLI]
    predictions = stock_predictions(tmp_path / "model", tokenizer, *columns)
    correct = [a.lower() == row[2] for a, row in zip(predictions, NLI, strict=True)]
    assert results["eval_anli_r1_dev_accuracy"] == np.mean(correct)
    assert results["eval_anli_r1_test_accuracy"] == np.mean(correct), "a name that sets begin with"
    columns = [row[1] for row in HANS], [row[2] for row in HANS]
    predictions = stock_predictions(tmp_path / "model", tokenizer, *columns)
    correct = [
        (a.lower() == "entailment") == (row[0] == "entailment")
        for a, row in zip(predictions, HANS, strict=True)
    ]
    assert results["eval_hans_accuracy"] == np.mean(correct)
    lines = (tmp_path / "out" / "predictions_hans.jsonl").read_text().splitlines()
    assert {json.loads(line)["prediction"] for line in lines} <= {"entailment", "non-entailment"}


def test_other_names_are_an_error_that_shows_both_lists(data, tmp_path):
    save_classifier(tmp_path / "model", ["entail", "neutral", "contradict"])
    expected = "labels are entail, neutral, contradict, the task's entailment, neutral, contradict"
    with pytest.raises(UsageError, match=expected):
        measure(tmp_path / "model", data, tmp_path / "out", "--task", "mnli")


def test_a_plain_trainer_s_run(data, tmp_path):
    """A checkpoint of stock Trainer, whose labels have no names; --label_names gives them."""
    model = tiny_model("bert").classifier
    rows = [{k: v for k, v in row.items() if k != "example_id"} for row in examples(8, 1)]
    args = TrainingArguments(
        str(tmp_path / "run"), max_steps=2, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(
        model, args, train_dataset=Dataset.from_list(rows), processing_class=tiny_tokenizer()
    )
    trainer.train()
    trainer.save_model()
    words = ["--task", "sst2", "--sets", "imdb_cont_dev"]
    with pytest.raises(UsageError, match=r"labels are LABEL_0, LABEL_1, .* with --label_names"):
        measure(tmp_path / "run", data, tmp_path / "out", *words)
    with pytest.raises(UsageError, match="--label_names: 3, but the model has 2"):
        measure(tmp_path / "run", data, tmp_path / "out", *words, "--label_names", *"abc")
    words += ["--label_names", "negative", "positive"]
    results = measure(tmp_path / "run", data, tmp_path / "out", *words)
    texts = [text for _, _, text in REVIEWS]
    predictions = stock_predictions(tmp_path / "run", tiny_tokenizer(), texts)
    correct = [
        (a == "LABEL_1") != (label == "Positive")  # edited texts have the opposite label
        for a, (label, _, _) in zip(predictions, REVIEWS, strict=True)
    ]
    assert results["eval_imdb_cont_dev_accuracy"] == np.mean(correct)


def test_reviews_at_two_lengths(tmp_path, caplog):
    data = write_layouts(tmp_path / "data")
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in random.integers(0, 90, 300)) for _ in range(12)]
    rows = [f"{['Negative', 'Positive'][i % 2]}\t{text}" for i, text in enumerate(texts)]
    path = data / "imdb_contrast" / "test_contrast.tsv"
    path.write_text("\n".join(["Sentiment\tText", *rows]) + "\n")
    (data / "imdb_contrast" / "test_original.tsv").write_text(path.read_text())
    tokenizer = save_classifier(tmp_path / "model", ["negative", "positive"], length=520)
    words = ["--task", "sst2", "--sets", "imdb_cont_test", "imdb_cont", "imdb_cont_test_original"]
    results = measure(tmp_path / "model", data, tmp_path / "out", *words)
    seen = set()
    for length, suffix in ((128, ""), (512, "_512")):
        predictions = stock_predictions(tmp_path / "model", tokenizer, texts, length=length)
        correct = [(a == "positive") == (i % 2 == 1) for i, a in enumerate(predictions)]
        name = f"eval_imdb_cont_test{suffix}"
        assert results[f"{name}_accuracy"] == results[f"{name}_consistency"] == np.mean(correct)
        assert results[f"eval_imdb_cont{suffix}_samples"] == 17
        seen.add(tuple(predictions))
    assert len(seen) == 2, "the two lengths read the same"
    only = measure(tmp_path / "model", data, tmp_path / "64", *words, "--max_seq_length", "64")
    assert not any("_512" in key for key in only)
    save_classifier(tmp_path / "short", ["negative", "positive"], length=60)
    results = measure(tmp_path / "short", data, tmp_path / "out", *words)
    assert not any("_512" in key for key in results)
    assert "not measured at 512 tokens: the model takes 60" in caplog.text


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("standard", {"imdb_cont_test", "imdb_cont_test_original", "imdb_cad_test"}),
        ("paper-like", {"imdb_cont", "imdb_cad", "imdb_cont_dev", "imdb_cad_dev"}),
    ],
)
def test_protocols(data, tmp_path, protocol, expected):
    save_classifier(tmp_path / "model", ["negative", "positive"])
    words = ["--task", "sst2", "--protocol", protocol]
    results = measure(tmp_path / "model", data, tmp_path / "out", *words)
    names = {k.removeprefix("eval_").removesuffix("_samples") for k in results if "_samples" in k}
    assert expected | {"dev"} <= names
    assert ("imdb_cont" in names) == (protocol == "paper-like")
    (data / "imdb_cad" / "new" / "test.tsv").rename(data / "gone.tsv")
    try:  # a protocol skips a missing set; naming the set is an error
        results = measure(tmp_path / "model", data, tmp_path / "out", *words)
        assert "eval_imdb_cad_test_accuracy" not in results and "eval_dev_accuracy" in results
        with pytest.raises(UsageError, match="imdb_cad_test: not found"):
            measure(tmp_path / "model", data, tmp_path / "out", *words[:2], "--sets", "imdb_cad")
    finally:
        (data / "gone.tsv").rename(data / "imdb_cad" / "new" / "test.tsv")
    with pytest.raises(UsageError, match="unknown protocol 'papr-like'; did you mean 'paper-like'"):
        measure(tmp_path / "model", data, tmp_path / "out", *words[:3], "papr-like")


def test_own_files_alongside_named_sets(data, tmp_path):
    save_classifier(tmp_path / "model", ["negative", "positive"])
    mine = tmp_path / "mine.csv"
    mine.write_text("sentence,label\nw1 w2,1\n")
    words = ["--task", "sst2", "--sets", "dev", "--eval_files", f"mine={mine}"]
    results = measure(tmp_path / "model", data, tmp_path / "out", *words)
    assert results["eval_mine_samples"] == 1 and results["eval_dev_samples"] == 2
    with pytest.raises(UsageError, match="--sets and --protocol exclude each other"):
        measure(tmp_path / "model", data, tmp_path / "out", *words, "--protocol", "standard")
    with pytest.raises(UsageError, match=r"mine\.csv/out: cannot be made a folder"):
        measure(tmp_path / "model", data, mine / "out", *words)


def test_f1_of_duplicates(data, tmp_path, capsys):
    save_classifier(tmp_path / "model", ["duplicate", "not_duplicate"])
    results = measure(tmp_path / "model", data, tmp_path / "out", "--task", "qqp")
    assert {"eval_dev_f1", "eval_paws_qqp_all_f1", "eval_paws_qqp_f1_low"} <= set(results)
    lines = (tmp_path / "out" / "predictions_dev.jsonl").read_text().splitlines()
    named = np.array([json.loads(line)["prediction"] == "duplicate" for line in lines])
    gold = np.array([True, False, True, False, False])
    wanted = 2 * (named & gold).sum() / max(1, named.sum() + gold.sum())
    assert results["eval_dev_f1"] == pytest.approx(wanted)
    printed = capsys.readouterr()
    assert "paws_qqp_all" in printed.out and "%|" in printed.err, "a table, and a progress bar"


def test_a_pair_task_wants_pairs(data, tmp_path):
    save_classifier(tmp_path / "model", ["not_duplicate", "duplicate"])
    single = tmp_path / "single.csv"
    single.write_text("text,is_duplicate\nwhat,0\n")
    with pytest.raises(UsageError, match="no column 'question1'; it has 'text', 'is_duplicate'"):
        measure(
            tmp_path / "model", data, tmp_path / "out", "--task", "qqp",
            "--eval_files", f"mine={single}",
        )  # fmt: skip
