"""The command predict: streaming, order, resuming after a kill, and its errors."""

import csv
import json
import shutil
import subprocess
import sys

import pytest
import torch
from families import tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from masktuning import predict
from masktuning.config.errors import UsageError
from masktuning.evaluation import stream_predictions

LABELS = {0: "negative", 1: "positive"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    tiny_model("bert", id2label=LABELS).classifier.save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    texts = [" ".join(f"w{(i * k) % 80}" for k in range(1 + 7 * i % 23)) for i in range(50)]
    texts[3] = 'w1 "quoted",\nw2'  # a comma, a quote and a line break
    texts[4] = ""
    with (folder / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    lines = [json.dumps({"a": text, "b": f"w{i} w2"}) for i, text in enumerate(texts)]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    return folder, texts


def expected(folder, *texts):
    """The probabilities of one text, or one pair, by a stock classifier in float64."""
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model").double().eval()
    inputs = AutoTokenizer.from_pretrained(folder / "model")(*texts, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits[0].softmax(-1).tolist()


def run(folder, *words):
    flags = ["--model_name_or_path", str(folder / "model"), "--disable_tqdm", "--use_cpu"]
    predict.main([*flags, *words])


def test_a_csv_file_keeps_its_columns_and_order(files, tmp_path, monkeypatch, capsys):
    folder, texts = files
    monkeypatch.setattr(stream_predictions, "PIECE", 7)
    out = tmp_path / "new" / "out.csv"
    words = ("--input_file", str(folder / "texts.csv"), "--output_file", str(out))
    run(folder, *words, "--per_device_eval_batch_size", "3")
    assert f"{out}: the predicted labels of 50 texts" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == texts and rows[9]["id"] == "9"
    for i in (0, 3, 4, 20, 49):
        wanted = expected(folder, texts[i])
        shares = [float(rows[i][f"probability_{name}"]) for name in LABELS.values()]
        assert shares == pytest.approx(wanted, abs=2e-6)
        assert rows[i]["prediction"] == LABELS[max((0, 1), key=wanted.__getitem__)]
    assert [path.name for path in out.parent.iterdir()] == ["out.csv"]
    with pytest.raises(UsageError, match="exists: give another --output_file, or --overwrite"):
        run(folder, *words)


def test_pairs_of_json_lines(files, tmp_path):
    folder, texts = files
    out = tmp_path / "out.jsonl"
    words = ("--input_file", str(folder / "pairs.jsonl"), "--text_column_names", "a,b")
    run(folder, *words, "--output_file", str(out))
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["a"] for row in rows] == texts
    wanted = expected(folder, texts[20], "w20 w2")
    assert [*rows[20]["probabilities"].values()] == pytest.approx(wanted, abs=2e-6)


def test_a_parquet_file(files, tmp_path):
    from datasets import Dataset

    folder, texts = files
    Dataset.from_dict({"sentence": texts}).to_parquet(tmp_path / "in.parquet")
    run(folder, "--input_file", str(tmp_path / "in.parquet"))
    with (tmp_path / "in_predictions.csv").open(newline="") as file:
        assert [row["sentence"] for row in csv.DictReader(file)] == texts


def test_columns_that_are_only_carried_stay_as_they_are(files, tmp_path):
    """In JSON Lines with their types, in CSV under their own names, whatever their order."""
    folder, _ = files
    rows = [
        {"id": 1, "text": "w1 w2", "more": {"of": ["ä", None]}},
        {"text": "w3", "more": None, "id": 2.5},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    words = ("--input_file", str(tmp_path / "in.jsonl"), "--output_file")
    run(folder, *words, str(tmp_path / "out.jsonl"))
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [{name: row[name] for name in rows[0]} for row in found] == rows
    run(folder, *words, str(tmp_path / "out.csv"))
    with (tmp_path / "out.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["id"], first["text"], first["more"]) == ("1", "w1 w2", '{"of": ["ä", null]}')
    assert (second["id"], second["text"], second["more"]) == ("2.5", "w3", "")


def test_numbers_that_json_has_not_are_null(files, tmp_path):
    from datasets import Dataset

    folder, _ = files
    rows = {"text": ["w1"], "score": [float("nan")], "more": [[1.0, float("inf")]]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out.jsonl"
    run(folder, "--input_file", str(tmp_path / "in.parquet"), "--output_file", str(out))
    row = json.loads(out.read_text(), parse_constant=pytest.fail)
    assert row["score"] is None and row["more"] == [1.0, None]


KILLED = """
import os, signal, sys
from masktuning import predict
from masktuning.evaluation import partial_output, stream_predictions

stream_predictions.PIECE = 7
append, count = partial_output.PartialOutput.append, [0]

def dying(self, text, rows):
    count[0] += 1
    if count[0] == 4:
        self._file.write(text[: len(text) // 2].encode())
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, text, rows)

partial_output.PartialOutput.append = dying
predict.main(sys.argv[1:])
"""


def test_a_killed_run_goes_on(files, tmp_path, monkeypatch):
    """The pieces that were written are neither computed again nor written twice."""
    folder, _ = files
    whole, out = tmp_path / "whole.csv", tmp_path / "out.csv"
    words = ["--model_name_or_path", str(folder / "model"), "--disable_tqdm", "--use_cpu"]
    words += ["--input_file", str(folder / "texts.csv"), "--output_file"]
    monkeypatch.setattr(stream_predictions, "PIECE", 7)
    predict.main([*words, str(whole)])
    done = subprocess.run([sys.executable, "-c", KILLED, *words, str(out)], capture_output=True)
    assert done.returncode == -9 and not out.exists()
    with pytest.raises(UsageError, match="was begun with another max_length: remove it"):
        predict.main([*words, str(out), "--max_seq_length", "16"])
    with pytest.raises(UsageError, match="was begun with another label_names: remove it"):
        predict.main([*words, str(out), "--label_names", "bad", "good"])
    seen = []
    classify = stream_predictions._Classifier.__call__

    def counted(self, texts):
        seen.append(len(texts))
        return classify(self, texts)

    monkeypatch.setattr(stream_predictions._Classifier, "__call__", counted)
    predict.main([*words, str(out)])
    assert seen == [7, 7, 7, 7, 1]  # of 50 texts, 21 were there
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "whole.csv"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("none.csv", None, "no such file"),
        ("a.json", "[]", "cannot be read row by row"),
        ("a.csv", "text\n", "empty, there is no text in it"),
        ("a.csv", "body\nw1\n", "which column is the text"),
        ("a.csv", "text\nw1\nw1,w2\n", "line 3: 2 fields where the header has 1"),
        ("a.csv", "text,prediction\nw1,a\n", "has a column 'prediction' already"),
        ("a.jsonl", '{"text": "w1"}\n{"texts": "w1"}\n', "line 2: has texts, the first row text"),
        ("a.jsonl", '{"text": ["w1"]}\n', "line 1: 'text' is not a text or a number"),
        ("a.csv", b"text\nw1\n\xff\n", "not UTF-8"),
        ("a.parquet", "text\n", "not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_line(files, tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=told) as caught:
        run(files[0], "--input_file", str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a_predictions.csv").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--input_file", "texts.csv"], "--model_name_or_path is missing"),
        (["--model_name_or_path", "model"], "--input_file is missing"),
        (["--output_file", "out.xlsx"], "use one of .csv, .jsonl"),
        (["--per_device_eval_batch_size", "0"], "must be 1 or more"),
        (["--text_column_names", "body"], "no column 'body'; it has id, text"),
        (["--label_names", "a", "b", "c"], "--label_names: 3, but the model has 2"),
        (["--output_file", "texts.csv", "--overwrite"], "are the same file"),
    ],
)
def test_wrong_flags_are_told(files, monkeypatch, words, told):
    monkeypatch.chdir(files[0])
    given = {"--model_name_or_path": "model", "--input_file": "texts.csv"}
    if "is missing" not in told:
        words = [*(word for pair in given.items() for word in pair), *words]
    with pytest.raises(UsageError, match=told):
        predict.main([*words, "--disable_tqdm"])


def test_a_carriage_return_within_a_text_ends_no_line(files, tmp_path):
    """Python's csv module itself does not quote it before 3.13."""
    folder, _ = files
    source, out = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text(json.dumps({"text": "w1\rw2"}) + "\n" + json.dumps({"text": "w3"}) + "\n")
    run(folder, "--input_file", str(source), "--output_file", str(out))
    with out.open(newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == ["w1\rw2", "w3"]


def test_what_no_label_can_be_predicted_with(files, tmp_path):
    """A classifier of several labels per text, and one whose tokenizer cannot pad."""
    folder, _ = files
    words = ("--input_file", str(folder / "texts.csv"), "--output_file", str(tmp_path / "out.csv"))
    shutil.copytree(folder / "model", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="gives a text several labels at once"):
        run(tmp_path, *words)
    with pytest.raises(UsageError, match="--text_column_names a,b,c: a text has one column"):
        run(folder, *words, "--text_column_names", "a,b,c")
