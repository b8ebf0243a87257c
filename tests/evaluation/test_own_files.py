"""The command `evaluate` on own files: what it writes, what it reads, and what it says."""

import json
import logging

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from layouts import HANS, write_layouts
from transformers import AutoModelForSequenceClassification

from masktuning import evaluate
from masktuning.config.errors import UsageError
from masktuning.data import sources


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Classifiers of two tasks, one without label names, and one that gives a score."""
    folder = tmp_path_factory.mktemp("models")
    labels = {
        "feelings": ["positive", "negative"],
        "nli": ["neutral", "entailment", "contradiction"],
        "unnamed": ["LABEL_0", "LABEL_1"],
        "score": ["LABEL_0"],
    }
    for name, names in labels.items():
        numbered = dict(enumerate(names))
        model = tiny_model("bert", num_labels=len(names), id2label=numbered).classifier
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"))


def stock_probabilities(folder, *texts):
    """What the stock classifier gives one text or pair, by label name."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**tiny_tokenizer()(*texts, return_tensors="pt")).logits[0]
    return {model.config.id2label[i]: float(p) for i, p in enumerate(logits.softmax(0))}


def predictions(folder, name):
    lines = (folder / f"predictions_{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_predictions_hold_text_label_prediction_and_probabilities(models, tmp_path, capsys):
    rows = [("w1 w2 é", "negative"), ("w3", "positive"), ("w4 w9 w8", "negative")]
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "\n".join(map(",".join, rows)), encoding="utf-8")
    words = ["--model_name_or_path", str(models / "feelings"), "--eval_files", f"mine={path}"]
    evaluate.main([*words, "--output_dir", str(tmp_path)])
    assert "%|" in capsys.readouterr().err
    found = predictions(tmp_path, "mine")
    assert len(found) == 3
    for i, (record, (text, label)) in enumerate(zip(found, rows, strict=True)):
        expected = stock_probabilities(models / "feelings", text)
        assert record.pop("probabilities") == pytest.approx(expected, abs=2e-6)
        likeliest = max(expected, key=expected.get)
        wanted = {"example_id": i, "text": text, "label": label, "prediction": likeliest}
        assert record == wanted


def test_pairs_and_unions_have_both_texts_and_the_model_s_labels(models, data, tmp_path):
    words = ["--model_name_or_path", str(models / "nli"), "--task", "mnli", "--data_dir", str(data)]
    evaluate.main([*words, "--sets", "hans", "anli_dev", "--output_dir", str(tmp_path)])
    hans = predictions(tmp_path, "hans")
    assert [(r["label"], r["text"], r["text_pair"]) for r in hans] == [row[:3] for row in HANS]
    expected = stock_probabilities(models / "nli", *HANS[0][1:3])
    assert hans[0]["probabilities"] == pytest.approx(expected, abs=2e-6)
    parts = [predictions(tmp_path, f"anli_r{i}_dev") for i in (1, 2, 3)]
    joined = [{**record, "example_id": 0} for part in parts for record in part]
    union = predictions(tmp_path, "anli_dev")
    assert [{**record, "example_id": 0} for record in union] == joined
    assert [record["example_id"] for record in union] == list(range(len(joined)))


def test_quiet_prints_the_table_alone(models, tmp_path, capsys, caplog):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "w1 w2 w3 w4 w5 w6 w7,positive\n" * 3)
    words = ["--model_name_or_path", str(models / "feelings"), "--eval_files", f"mine={path}"]
    words += ["--max_seq_length", "4", "--overwrite_cache"]
    evaluate.main([*words, "--disable_tqdm"])
    first = capsys.readouterr()
    assert "%|" not in first.err and "were truncated" in caplog.text
    caplog.clear()
    evaluate.main([*words, "--quiet"])
    second = capsys.readouterr()
    assert (second.out, second.err, caplog.text) == (first.out, "", "")
    assert second.out.split()[:3] == ["set", "role", "accuracy"]
    assert logging.getLogger("masktuning").level != logging.ERROR


def test_labels_without_names_lead_to_the_flag(models, tmp_path, capsys):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\nw1,good\nw2,bad\n")
    words = ["--model_name_or_path", str(models / "unnamed"), "--eval_files", f"mine={path}"]
    with pytest.raises(
        UsageError, match=r"line 2: label 'good' is none of LABEL_0, LABEL_1, "
    ) as e:
        evaluate.main(words)
    assert "--label_names" in str(e.value) and "\n" not in str(e.value)
    evaluate.main([*words, "--label_names", "bad", "good", "--quiet"])
    assert "mine" in capsys.readouterr().out


@pytest.mark.parametrize(("model", "score"), [("feelings", "2.5"), ("unnamed", "-0.75")])
def test_scores_are_not_labels(models, tmp_path, model, score):
    path = tmp_path / "mine.csv"
    path.write_text(f"text,label\nw1,{score}\n")
    words = ["--model_name_or_path", str(models / model), "--eval_files", f"mine={path}"]
    with pytest.raises(UsageError, match=r"line 2: label '.*' .* regression") as caught:
        evaluate.main(words)
    assert "\n" not in str(caught.value)


def test_a_model_of_scores_has_no_labels(models, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\nw1,0\n")
    words = ["--model_name_or_path", str(models / "score"), "--eval_files", f"mine={path}"]
    with pytest.raises(UsageError, match="predicts a score"):
        evaluate.main(words)


REVIEWS = {f"imdb_{name}.tsv" for name in ("contrast/dev_contrast", "contrast/test_contrast")}
REVIEWS |= {"imdb_cad/new/dev.tsv", "imdb_cad/new/test.tsv"}
NLI = {"mnli/dev_matched.tsv", "mnli/dev_mismatched.tsv", "hans/heuristics_evaluation_set.txt"}


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        ("sst2", "feelings", {"sst2/dev.tsv", *REVIEWS}),
        ("mnli", "nli", {*NLI, "anli/R1/test.jsonl"}),
    ],
)
def test_a_protocol_opens_no_file_of_other_sets(
    models, data, tmp_path, monkeypatch, capsys, task, model, expected
):
    """A union is made of its parts, so these are opened; own files are measured and shown too."""
    opened = set()

    def recorded(path, *arguments, real=sources.read_table):
        opened.add(path)
        return real(path, *arguments)

    monkeypatch.setattr(sources, "read_table", recorded)
    mine = tmp_path / "mine.csv"
    header, row = ("text", "w1,positive") if task == "sst2" else ("a,b", "w1,w2,neutral")
    mine.write_text(f"{header},label\n{row}\n")
    words = ["--model_name_or_path", str(models / model), "--task", task, "--data_dir", str(data)]
    words += ["--eval_files", f"mine={mine}", "--text_column_names", header]
    words += ["--label_column_name", "label", "--protocol", "paper-like", "--max_seq_length", "16"]
    evaluate.main(words)
    assert opened == {mine, *(data / path for path in expected)}
    table = capsys.readouterr().out.partition("\n\n")[0]
    assert table.startswith("paper-like:") and "mine " in table and "dev" in table
