"""Readers, columns, label names, tokenisation and the collator.

Shapes: B examples, L tokens.
"""

import json
import logging

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset
from families import SPECIAL, tiny_model, tiny_tokenizer
from oracles import counts_of

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments
from masktuning.data.collator import MaskTuningCollator, PaddingCollator
from masktuning.data.custom_task import own_task, with_eval_files
from masktuning.data.labels import LabelNames, model_labels
from masktuning.data.load import LabelledTexts, load_set, load_texts
from masktuning.data.readers import read_table
from masktuning.data.tokenize import encode, length_limit
from masktuning.tasks import SetSpec, load_task, names

ROWS = [("w1 w2", "good"), ('he said "no", twice\nand left', "bad"), ("w3", "good")]


def write_csv(path, rows=ROWS, delimiter=","):
    quoted = ['"' + text.replace('"', '""') + f'"{delimiter}{label}' for text, label in rows]
    path.write_text(f"text{delimiter}label\n" + "\n".join(quoted) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "list.json", "parquet"])
def test_every_kind_of_file(tmp_path, kind):
    path = tmp_path / f"data.{kind}"
    if kind in ("csv", "tsv"):
        write_csv(path, delimiter="," if kind == "csv" else "\t")
    elif kind == "list.json":
        rows = [{"text": text, "label": label} for text, label in ROWS]
        path.write_text(json.dumps(rows, indent=1))
    elif kind in ("jsonl", "json"):
        lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
        path.write_text("\n".join(lines) + "\n\n")
    else:
        columns = {"text": [r[0] for r in ROWS], "label": [r[1] for r in ROWS]}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path)
    assert list(zip(table.columns["text"], table.columns["label"], strict=True)) == ROWS


def test_unquoted_tsv_keeps_its_quotes(tmp_path):
    path = tmp_path / "sst.tsv"
    path.write_text('sentence\tlabel\n"unbalanced quote \t0\n')
    assert read_table(path, quoting="none").columns["sentence"] == ['"unbalanced quote ']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv: empty"),
        ("a.csv", b"text,label\n", "a.csv: empty"),
        ("a.csv", b'text,label\nw1,good\n"w2,good\n', "starts at line 3 has broken quoting"),
        ("a.csv", b'text,label\n"w1"x,good\n', "starts at line 2 has broken quoting"),
        ("a.csv", b"text,text,label\nw1,w2,good\n", "two columns have the same name"),
        ("a.jsonl", b'{"text": ["a"], "label": 1}\n', "line 1: 'text' is not a text or a number"),
        ("a.csv", b"text,label\nw1,good,more\n", "line 2: 3 fields where the header has 2"),
        ("a.csv", b"text,label\nw1,good\nw\xff,bad\n", "line 3: not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: not a JSON object"),
        ("a.json", b'[{"a": 1}, 2]', "line 2: not a JSON object"),
        ("a.json", b'[\n{"a": 1},\n{"a":\n', "line 4: not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"b": 1}\n', "line 2: has b, the first row a"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: not JSON .*surrogates not allowed"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}\n", "line 1: not JSON .*digits"),
        ("a.jsonl", b'{"text": ' + b"[" * 100000 + b"\n", "line 1: not JSON"),
        ("a.parquet", b"no", "not a Parquet file"),
        ("a.xml", b"<a/>", "unknown extension"),
    ],
)
def test_broken_files_name_the_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_table(path).column("text")


def test_a_parquet_column_of_lists_is_no_text(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "words": [["a"], ["b"]]}), path)
    table = read_table(path)
    assert table.column("text") == ["a", "b"]
    with pytest.raises(UsageError, match="line 1: 'words' is not a text or a number"):
        table.column("words")


def test_the_named_format_counts_and_not_the_extension(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text('[{"text": "a"},\n {"text": "b"}]')
    assert read_table(path, format="json").column("text") == ["a", "b"]


def test_missing_file_and_column(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        read_table(tmp_path / "nowhere.csv")
    path = write_csv(tmp_path / "a.csv")
    spec = SetSpec("dev", "dev", ["sentence"], "label", file=str(path))
    with pytest.raises(UsageError, match="no column 'sentence'; it has 'text', 'label'"):
        load_set(spec, ["bad", "good"], None)


def test_labels_are_mapped_by_name(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("x", "Not-Good"), ("y", "GOOD"), ("z", "7")])
    spec = SetSpec("dev", "dev", ["text"], "label", {"7": "good"}, file=str(path))
    assert load_set(spec, ["good", "not good"], None).labels == [1, 0, 0]
    with pytest.raises(UsageError, match=r"a\.csv, line 2: label 'Not-Good' is none of bad, good"):
        load_set(spec, ["bad", "good"], None)


def test_names_that_differ_in_punctuation_only_stay_apart(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("x", "1"), ("y", "-1"), ("z", "1")])
    task = own_task(DataArguments(train_file=str(path)))
    assert task.labels == ["1", "-1"]
    assert load_set(task.sets[0], task.labels, None).labels == [0, 1, 0]
    assert LabelNames(["C", "C++"]).find("c") is None
    assert LabelNames(["LABEL_0", "LABEL_1"]).find("1") == 1
    numbers = LabelNames(["0", "1", "10"])
    assert [numbers.find(name) for name in ("1", " 10", "1.", "-1", "- 1", "1.0", "?")] == [
        *(1, 2, 1, None, None, None, None)
    ]
    assert LabelNames(["LABEL_0", "LABEL_1"]).find(" 1") == 1
    assert LabelNames(["?", "word"]).find("!") is None
    assert LabelNames(["Not-Good", "good"]).find("NOT GOOD") == 0
    assert model_labels(["POSITIVE", "Negative"], ["negative", "positive"]) == [
        "POSITIVE",
        "Negative",
    ]
    with pytest.raises(UsageError, match=r"labels are a, b, the task's a, c"):
        model_labels(["a", "b"], ["a", "c"])


def test_an_empty_label_is_no_class(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("x", "good"), ("y", "")])
    with pytest.raises(UsageError, match=r"a\.csv, line 3: the label in 'label' is empty"):
        own_task(DataArguments(train_file=str(path)))


def test_the_cache_knows_the_tokenizer_s_settings():
    texts = LabelledTexts("dev", "dev", [["w1 w2 w3 w4"]], [1])
    right, left, typed = tiny_tokenizer(), tiny_tokenizer(), tiny_tokenizer()
    left.truncation_side = "left"
    typed.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert encode(texts, right, 5)["input_ids"][0] == [0, 6, 7, 8, 2]
    assert encode(texts, left, 5)["input_ids"][0] == [0, 7, 8, 9, 2]
    assert "token_type_ids" in encode(texts, typed, 5).column_names


def test_the_first_rows_are_what_is_counted(caplog):
    texts = LabelledTexts("dev", "dev", [["w1", "w1 w2 w3 w4"]], [1, 0])
    assert encode(texts.first(1), tiny_tokenizer(), 4)["example_id"][:] == [0]
    assert "truncated" not in caplog.text


@pytest.mark.parametrize(("family", "limit"), [("bert", 64), ("roberta", 62), ("bart", 64)])
def test_the_model_s_length_limit(family, limit):
    """RoBERTa's table of 64 holds 62 positions: they are counted from its padding index on."""
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    tokenizer.model_max_length = 10**30
    assert length_limit(model.encoder, model.config, tokenizer) == limit
    longest = torch.full((1, limit), 9)
    model(longest)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, limit + 1), 9))
    tokenizer.model_max_length = 20
    assert length_limit(model.encoder, model.config, tokenizer) == 20


def test_empty_text_names_the_line(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("x", "good"), (" ", "bad")])
    spec = SetSpec("dev", "dev", ["text"], "label", file=str(path))
    with pytest.raises(UsageError, match="line 3: the text in 'text' is empty"):
        load_set(spec, ["bad", "good"], None)


def test_own_task_from_flags(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("premise,hypothesis,label\na,b,10\nc,d,9\n")
    more = tmp_path / "more.csv"
    more.write_text("premise,hypothesis,label\ne,f,9\n")
    arguments = DataArguments(
        train_file=str(path), validation_file=str(path), eval_files=[f"more={more}"]
    )
    task = own_task(arguments)
    assert task.labels == ["9", "10"]
    assert [(s.name, s.role, s.text) for s in task.sets] == [
        ("train", "train", ["premise", "hypothesis"]),
        ("dev", "dev", ["premise", "hypothesis"]),
        ("more", "ood", ["premise", "hypothesis"]),
    ]
    loaded = load_texts(task.sets, task.labels, None)
    assert loaded[2].texts == [["e"], ["f"]] and loaded[2].labels == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_files": ["more"]}, "takes name=path, not 'more'"),
        (
            {"eval_files": ["train=x.csv"]},
            "'train' is reserved or another set's; choose another one, such as my_train=x.csv",
        ),
        ({"text_column_names": "words"}, "no column 'words'"),
        ({"label_column_name": "gold"}, "no column 'gold'"),
    ],
)
def test_own_task_errors(tmp_path, change, message):
    path = str(write_csv(tmp_path / "a.csv"))
    with pytest.raises(UsageError, match=message):
        task = own_task(DataArguments(**{"train_file": path, "validation_file": path, **change}))
        load_texts(task.sets, task.labels, None)


def test_text_column_must_be_clear(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("words,label\na,1\nb,0\n")
    with pytest.raises(UsageError, match="which column is the text"):
        own_task(DataArguments(train_file=str(path)))


def test_one_label_is_no_task(tmp_path):
    path = write_csv(tmp_path / "a.csv", [("x", "good"), ("y", "good")])
    with pytest.raises(UsageError, match="every row has the label 'good'"):
        own_task(DataArguments(train_file=str(path)))


def test_eval_files_alongside_a_task(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("sentence\tlabel\nfine\t1\n")
    task = with_eval_files(load_task("sst2"), DataArguments(eval_files=[f"mine={path}"]))
    assert task.sets[-1].name == "mine"
    assert load_set(task.sets[-1], task.labels, "elsewhere").labels == [1]


def test_a_missing_ood_set_is_skipped_with_a_warning(tmp_path, caplog):
    folder = tmp_path / "sst2"
    folder.mkdir()
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("sentence\tlabel\nfine \t1\nbad \t0\n")
    task = load_task("sst2")
    with caplog.at_level(logging.WARNING, "masktuning"):
        texts = load_texts(task.sets, task.labels, str(tmp_path))
    assert [t.name for t in texts] == ["train", "dev"]
    assert "skipped: imdb_cad_test: not found" in caplog.text
    with pytest.raises(UsageError, match=r"imdb_cont_dev: not found: .*dev_contrast\.tsv"):
        load_texts(task.sets, task.labels, str(tmp_path), ["imdb_cont_dev"])
    (folder / "dev.tsv").unlink()
    with pytest.raises(UsageError, match="dev: not found"):
        load_texts(task.sets, task.labels, str(tmp_path))


def test_the_hub_is_asked_for_a_pinned_revision(monkeypatch):
    asked = {}
    names = ClassLabel(names=["negative", "positive"])
    columns = {"sentence": ["fine", "bad"], "label": [1, 0], "idx": [0, 1]}

    def load_dataset(*args, **kwargs):
        asked["call"] = (args, kwargs)
        return Dataset.from_dict(columns).cast_column("label", names)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = load_task("sst2")
    texts = load_set(task.sets[1], task.labels, None)
    assert texts.labels == [1, 0] and texts.texts == [["fine", "bad"]]
    args, kwargs = asked["call"]
    assert args == ("nyu-mll/glue", "sst2") and kwargs["split"] == "validation"
    assert len(kwargs["revision"]) == 40


def test_own_data_set_by_its_id(tmp_path):
    """A local folder stands in for the hub: same call, same splits."""
    for split, rows in (("train", ROWS), ("validation", ROWS[:2])):
        write_csv(tmp_path / f"{split}.csv", rows)
    more = write_csv(tmp_path / "far.tsv", ROWS[1:], delimiter="\t")
    task = own_task(DataArguments(dataset_name=str(tmp_path), eval_files=[f"far={more}"]))
    assert task.labels == ["bad", "good"]
    texts = load_texts(task.sets, task.labels, None)
    assert [(t.name, t.role, t.labels) for t in texts] == [
        ("train", "train", [1, 0, 1]),
        ("dev", "dev", [1, 0]),
        ("far", "ood", [0, 1]),
    ]
    assert texts[0].texts == [[text for text, _ in ROWS]]
    with pytest.raises(UsageError, match=r"the data set no/where \(train\) cannot be read"):
        own_task(DataArguments(dataset_name="no/where"))


def test_a_list_on_the_hub_is_no_text(monkeypatch):
    rows = Dataset.from_dict({"text": [None, ["w1", "w2"]], "label": ["a", "b"]})
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: rows)
    with pytest.raises(UsageError, match="line 2: 'text' is not a text or a number"):
        task = own_task(DataArguments(dataset_name="some/where"))
        load_texts(task.sets, task.labels, None)


def test_an_unreachable_hub_says_what_to_do():
    task = load_task("sst2")
    with pytest.raises(UsageError, match=r"give --data_dir DIR with DIR/sst2/train\.tsv"):
        load_set(task.sets[0], task.labels, None)


def test_line_breaks_of_imdb_are_spaces(tmp_path):
    path = tmp_path / "dev.tsv"
    path.write_text('Sentiment\tText\nPositive\t"So.<br /><br />It ""works""."\n')
    spec = SetSpec("cad", "ood", ["Text"], "Sentiment", strip_breaks=True, file=str(path))
    assert load_set(spec, ["negative", "positive"], None).texts == [['So. It "works".']]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name: x\nlabels: [a, b]\nsets: {}\n", "'sets' is missing"),
        ("name: x\nlables: [a, b]\n", "unknown key .lables'; did you mean 'labels'"),
        (
            "name: x\nlabels: [a, b]\nsets: {dev: {role: dve, text: [t], label: l}}\n",
            "line 3: role must be train or dev or ood",
        ),
        (
            "name: x\nlabels: [a, b]\nsets: {dev: {role: dev, txt: [t], label: l}}\n",
            "line 3: unknown key 'txt'; did you mean 'text'",
        ),
        (
            "name: x\nlabels: [a, b]\nsets: {d: {role: dev, text: [t], label: l, hub: {id: a}}}\n",
            "hub needs an id, a split and a pinned revision",
        ),
        ("name: x\nlabels: ab\nsets: {d: {}}\n", "labels must be a list"),
        ("name: x\nlabels: [a, b]\nsets: [d]\n", "line 3: sets must be a mapping"),
        ("name: x\nlabels: [a, b]\nsets: {d: 3}\n", "line 3: d must be a mapping"),
        (
            "name: x\nlabels: [a, b]\nsets: {d: {role: dev, text: t, label: l, file: f}}\n",
            "line 3: text must be a list",
        ),
        (
            "name: x\nlabels: [a, b]\n"
            "sets: {d: {role: dev, text: [t], label: l, file: f, quoting: nnoe}}\n",
            "quoting must be csv or none",
        ),
        (
            "name: x\nlabels: [a, b]\nsets: {d: {role: dev, text: [t], label: l}}\n",
            "needs a source",
        ),
        (
            "name: x\nlabels: [a, b]\nsets: {d: {role: dev, text: [t], label: l, file: f}}\n",
            "one of role train",
        ),
        ("name: [\n", "line 2: not valid YAML"),
    ],
)
def test_broken_task_files(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        load_task(str(path))


def test_tasks_that_come_with_the_package():
    assert {"demo", "sst2"} <= set(names())
    for name in names():
        assert load_task(name).name == name
    with pytest.raises(UsageError, match="unknown task 'sst'; did you mean 'sst2'"):
        load_task("sst")


def test_real_sst2_and_imdb(shared):
    task = load_task("sst2")
    texts = {t.name: t for t in load_texts(task.sets, task.labels, str(shared / "data"))}
    counts = {name: (len(t), sum(t.labels)) for name, t in texts.items()}
    assert counts["train"] == (67349, 37569) and counts["dev"] == (872, 444)
    assert counts["imdb_cont_dev"][0] == 100 and counts["imdb_cad_dev"][0] == 245
    assert not any("<br" in text for text in texts["imdb_cad_dev"].texts[0])


def test_encoding_keeps_ids_counts_truncation_and_is_cached(caplog):
    tokenizer = tiny_tokenizer()
    texts = LabelledTexts("dev", "dev", [["w1 w2 w3 w4", "w5"], ["w6", "w7 w8"]], [1, 0])
    with caplog.at_level(logging.WARNING, "masktuning"):
        encoded = encode(texts, tokenizer, 7)
    assert "dev: 1 of 2 texts are longer than 7 tokens" in caplog.text
    first = [SPECIAL["<s>"], *[5 + i for i in (1, 2, 3)], SPECIAL["</s>"], 11, SPECIAL["</s>"]]
    assert encoded["input_ids"][0] == first
    assert encoded["example_id"][:] == [0, 1] and encoded["labels"][:] == [1, 0]
    again = encode(texts, tokenizer, 7)
    assert again.cache_files == encoded.cache_files != []
    longer = encode(texts, tokenizer, 9, num_proc=2)
    assert longer.cache_files != encoded.cache_files
    assert longer["truncated"][:] == [False, False]


def test_cached_rows_are_not_tokenised_again(monkeypatch):
    """Unless the cache of `datasets` is off; the rows are the same in any case."""
    tokenizer = tiny_tokenizer()
    texts = LabelledTexts("dev", "dev", [["w1 w2", "w3"]], [1, 0])
    first = encode(texts, tokenizer, 6)[:]

    def refuse(*arguments, **options):
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "__call__", refuse)
        assert encode(texts, tokenizer, 6)[:] == first
        patch.setattr("datasets.is_caching_enabled", lambda: False)
        patch.setattr("datasets.arrow_dataset.is_caching_enabled", lambda: False)
        with pytest.raises(AssertionError, match="tokenised again"):
            encode(texts, tokenizer, 6)


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.0])
def test_collator_counts(rate):
    """k_i, offsets and maskable by their definitions; [UNK] in the text is not maskable."""
    tokenizer = tiny_tokenizer()
    collate = MaskTuningCollator(tokenizer, mask_rate=rate, min_per_example=1)
    rows = [
        {"input_ids": [0, 10, 11, 12, 3, 13, 2], "label": 1, "example_id": 7, "text": "dropped"},
        {"input_ids": [0, 10, 2], "label": 0, "example_id": 2**32 - 1, "text": "dropped"},
        {"input_ids": [0, 3, 2], "label": 0, "example_id": 9, "text": "dropped"},
    ]
    batch = collate(rows)
    expected = torch.zeros(3, 7, dtype=torch.bool)
    expected[0, [1, 2, 3, 5]] = True
    expected[1, 1] = True
    assert torch.equal(batch["maskable"], expected)
    counts = counts_of(expected, rate)
    assert batch["offsets"].tolist() == [0, counts[0], counts[0] + counts[1], sum(counts)]
    assert batch["num_masked"] == sum(counts) and list(batch)[-1] == "num_masked"
    assert batch["example_ids"].tolist() == [7, 2**32 - 1, 9]
    assert batch["labels"].tolist() == [1, 0, 0]
    assert "text" not in batch and "attention_mask" in batch


def test_collator_leaves_out_a_mask_of_ones():
    batch = MaskTuningCollator(tiny_tokenizer())([{"input_ids": [0, 9, 2], "labels": 1}] * 2)
    assert "attention_mask" not in batch


@pytest.mark.parametrize(
    ("multiple", "words", "length"),
    [(None, 9, 11), (8, 9, 16), (8, 14, 16), (16, 30, 32), (16, 50, 60), (64, 3, 60), (1, 3, 5)],
)
def test_lengths_are_rounded_up_to_a_multiple(multiple, words, length):
    """Up to the tokenizer's limit, which is 60 here, and what is added is padding."""
    tokenizer = tiny_tokenizer()
    texts = tokenizer(["w1", " ".join(f"w{i}" for i in range(words))])["input_ids"]
    rows = [{"input_ids": ids, "labels": 0} for ids in texts]
    batch = PaddingCollator(tokenizer, pad_to_multiple_of=multiple)(rows)
    assert batch["input_ids"].shape == (2, length) == batch["attention_mask"].shape
    assert batch["attention_mask"].sum(1).tolist() == [3, words + 2]
    assert [
        row[:n] for row, n in zip(batch["input_ids"].tolist(), (3, words + 2), strict=True)
    ] == texts
    assert (batch["input_ids"] == SPECIAL["<pad>"]).sum() == 2 * length - words - 5


def test_collator_checks_its_rate():
    with pytest.raises(ValueError, match="mask_rate must be in"):
        MaskTuningCollator(tiny_tokenizer(), mask_rate=0.0)
