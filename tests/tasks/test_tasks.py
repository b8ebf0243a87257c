"""Every set of every task, read from its authors' layout, from the hub, and from the real files."""

import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import SHARED
from datasets import ClassLabel, Dataset
from layouts import HANS, NLI, QUESTIONS, REVIEWS, write_layouts

from masktuning.config.errors import UsageError
from masktuning.data.load import load_set, load_texts
from masktuning.data.readers import Table
from masktuning.tasks import SetSpec, load_task, names
from masktuning.tasks import __main__ as command

HUMAN = [name for name in names() if not load_task(name).generated]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"))


def loaded(task, name, data):
    task = load_task(task)
    texts = load_set(task.named(name), task.labels, str(data))
    own = task.named(name).labels or task.labels
    return texts, [own[i] for i in texts.labels]


@pytest.mark.parametrize("name", HUMAN)
def test_every_set_of_a_task_is_there(name, data):
    task = load_task(name)
    found = {
        one.name
        for one in load_texts(task.sets, task.labels, str(data), [s.name for s in task.sets])
    }
    assert found == {spec.name for spec in task.sets if not spec.union_of}


def test_sst2_takes_quotes_as_they_stand(data):
    texts, labels = loaded("sst2", "train", data)
    assert texts.texts == [['a "fine film ', "so dull "] * 2]
    assert labels == ["positive", "negative"] * 2


@pytest.mark.parametrize(
    ("name", "flipped", "step"),
    [
        ("imdb_cont_dev_original", False, 1),
        ("imdb_cont_test", True, 1),
        ("imdb_cad_dev", True, 1),
        ("imdb_cad_test_original", False, -1),
    ],
)
def test_reviews_are_unquoted_and_without_breaks(data, name, flipped, step):
    texts, labels = loaded("sst2", name, data)
    assert texts.texts == [[text for _, _, text in REVIEWS][::step]]
    expected = [(label == "Positive") != flipped for label, _, _ in REVIEWS][::step]
    assert [label == "positive" for label in labels] == expected


def test_paired_reviews_keep_their_pair(data):
    texts, labels = loaded("sst2", "imdb_cad_test_paired", data)
    assert texts.pairs == [str(100 + i // 2) for i in range(10)]
    assert all(labels[i] != labels[i + 1] for i in range(0, 10, 2))


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("mnli", "train"),
        ("mnli", "dev_mismatched"),
        ("lingnli", "dev"),
        ("lingnli", "dev_matched"),
        ("mnli", "anli_r2_test"),
        ("lingnli", "anli_r3_dev"),
    ],
)
def test_inference_pairs(data, task, name):
    texts, labels = loaded(task, name, data)
    assert texts.texts == [[row[0] for row in NLI], [row[1] for row in NLI]]
    assert labels == [row[2] for row in NLI]


def test_hans_has_two_labels_and_three_heuristics(data):
    texts, labels = loaded("mnli", "hans", data)
    assert labels == [row[0] for row in HANS] and texts.groups == [row[3] for row in HANS]
    assert texts.texts == [[row[1] for row in HANS], [row[2] for row in HANS]]


def test_a_row_of_qqp_that_is_cut_off_is_skipped_with_a_warning(data, tmp_path, caplog):
    """GLUE's own file holds such rows. Rows with one empty question are kept."""
    texts, labels = loaded("qqp", "train", data)
    rows = [*QUESTIONS[:2], ("Half a pair?", "", 0), *QUESTIONS[2:]]
    assert texts.texts == [[row[0] for row in rows], [row[1] for row in rows]]
    assert [label == "duplicate" for label in labels] == [row[2] == 1 for row in rows]
    assert "train.tsv: skipped lines with too few or too many fields: 4\n" in caplog.text
    write_layouts(tmp_path)
    for file in ("qqp/dev.tsv", "mnli/dev_matched.tsv"):  # a download that broke off
        path = tmp_path / file
        path.write_text(path.read_text()[:-12])
    for task, name in (("qqp", "dev"), ("mnli", "dev_matched")):
        with pytest.raises(UsageError, match=r"line 6: \d+ fields where the header has"):
            loaded(task, name, tmp_path)


def test_paws_decodes_byte_literals(data, tmp_path):
    texts, _ = loaded("qqp", "paws_qqp", data)
    assert texts.texts == [[row[0] for row in QUESTIONS], [row[1] for row in QUESTIONS]]
    folder = tmp_path / "paws_qqp"
    folder.mkdir()
    for bad in ("no literal", "'a text'", r"b'\xff'"):
        rows = f"id\tsentence1\tsentence2\tlabel\n1\tb'a'\tb'b'\t0\n2\t{bad}\tb'b'\t0\n"
        (folder / "dev_and_test.tsv").write_text(rows)
        with pytest.raises(UsageError, match="line 3: not a byte literal of UTF-8"):
            loaded("qqp", "paws_qqp", tmp_path)


def test_imdb_s_folders_and_its_hash_split(data, monkeypatch):
    (dev, labels), (train, _) = (loaded("imdb", name, data) for name in ("dev", "train"))
    assert len(dev) == 2 and len(train) == 18
    every = {f"{label} review {i}. The end." for label in ("neg", "pos") for i in range(10)}
    assert {*dev.texts[0]} | {*train.texts[0]} == every
    assert [text.startswith("pos") for text in dev.texts[0]] == [x == "positive" for x in labels]
    # The split is the same if the rows come in another order, as they do from the hub.
    rows = [p.read_text() for p in sorted((data / "aclImdb/train").glob("[np]*/*.txt"))][::-1]
    table = Table("reversed", {"text": rows, "label": ["neg"] * 20}, [*range(20)])
    monkeypatch.setattr("masktuning.data.sources.read_hub", lambda **_: table)
    task = load_task("imdb")
    again = load_set(task.named("dev"), task.labels, None)
    assert sorted(again.texts[0]) == sorted(dev.texts[0])


@pytest.mark.parametrize(("task", "first"), [("acl_arc", "Uses"), ("ohsumed", "C01")])
def test_l3masking_s_tasks(data, task, first):
    texts, labels = loaded(task, "test", data)
    assert texts.texts == [[f"text {i}" for i in range(5)]] and labels[0] == first


def test_hub_copies_have_our_columns(monkeypatch):
    """ANLI's and GLUE's own column names, as the hub has them."""
    nli = ClassLabel(names=["entailment", "neutral", "contradiction"])
    rows = {"premise": ["p"], "hypothesis": ["h"], "label": [2]}
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return Dataset.from_dict(rows).cast_column("label", nli)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = load_task("mnli")
    for name in ("anli_r3_test", "dev_mismatched"):
        texts = load_set(task.named(name), task.labels, None)
        assert texts.texts == [["p"], ["h"]] and texts.labels == [2]
    assert asked[0][0] == ("facebook/anli", None) and asked[0][1]["split"] == "test_r3"
    assert all(len(kwargs["revision"]) == 40 for _, kwargs in asked)


@pytest.mark.parametrize(
    ("task", "name", "columns", "names", "expected"),
    [
        ("qqp", "dev", {"question1": ["a"], "question2": ["b"]}, ["no", "duplicate"], "duplicate"),
        ("imdb", "test", {"text": ["a<br />b"]}, ["neg", "pos"], "positive"),
        ("sst2", "dev", {"sentence": ["a"]}, ["negative", "positive"], "positive"),
    ],
)  # fmt: skip
def test_hub_copies_of_the_other_tasks(monkeypatch, task, name, columns, names, expected):
    rows = Dataset.from_dict({**columns, "label": [1]})
    rows = rows.cast_column("label", ClassLabel(names=names))
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    task = load_task(task)
    texts = load_set(task.named(name), task.labels, None)
    assert task.labels[texts.labels[0]] == expected and len(texts) == 1


def test_what_the_folder_lacks_comes_from_the_hub_which_is_asked_once(data, monkeypatch, caplog):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append(kwargs["split"])
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    task = load_task("mnli")
    folder = data / "hans"
    specs = [replace(spec, file=f"../{spec.file}") for spec in task.sets if spec.name == "hans"]
    specs += [spec for spec in task.sets if spec.name.startswith("anli_r")]
    texts = load_texts(specs, task.labels, str(folder))
    assert [one.name for one in texts] == ["hans"] and asked == ["dev_r1"]
    assert "anli_r1_dev: not found: " in caplog.text and "no route" in caplog.text
    assert "anli_r3_test: not found: " in caplog.text and "cannot be reached" in caplog.text
    with pytest.raises(UsageError) as caught:
        load_texts(specs, task.labels, str(folder), [spec.name for spec in specs])
    assert str(caught.value).count("published at") == 6, "all that is missing at once"
    nli = ClassLabel(names=["entailment", "neutral", "contradiction"])
    rows = Dataset.from_dict({"premise": ["p"], "hypothesis": ["h"], "label": [2]})
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows.cast_column("label", nli))
    assert len(load_texts(specs, task.labels, str(folder))) == 7
    assert "read from facebook/anli (dev_r1), since " in caplog.text


def test_a_file_and_a_hub_copy_that_are_both_missing_are_both_named(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = {"id": "some/where", "split": "test", "revision": "0" * 40}
    spec = SetSpec("far", "ood", ["t"], "l", file="far.csv", hub=hub)
    with pytest.raises(UsageError, match=r"far: not found: .*far\.csv; the data set some/where"):
        load_set(spec, ["a", "b"], str(tmp_path))


@pytest.mark.parametrize(
    ("task", "alpha", "batch"), [("sst2", 0.6, 16), ("mnli", 0.7, 32), ("qqp", 0.8, 32)]
)
def test_the_paper_s_settings(task, alpha, batch):
    """Mask-tuning, section IV: alpha and batch size per task, and settings that all tasks share."""
    settings = load_task(task).settings_of("paper")
    assert "alpha" not in load_task(task).settings  # found from the gradients by default
    assert settings["alpha"] == alpha and settings["per_device_train_batch_size"] == batch
    assert settings["num_train_epochs"] == 3 and settings["mask_rate"] == 0.05
    assert settings["learning_rate"] in (2e-5, 3e-5, 4e-5, 5e-5)  # those that it tried on dev


def test_protocols_are_those_of_the_literature_and_of_the_paper():
    anli = {f"anli_r{r}_{part}" for r in (1, 2, 3) for part in ("dev", "test")}
    expected = {
        "sst2": (
            {"dev", "imdb_cont_test", "imdb_cont_test_original", "imdb_cad_test"},
            {"dev", "imdb_cont", "imdb_cad"},
        ),
        "mnli": (
            {"dev_matched", "dev_mismatched", "hans", "anli_dev", "anli_test"} | anli,
            {"dev_matched", "dev_mismatched", "hans", "anli_r1_test"},
        ),
        "qqp": ({"dev", "paws_qqp"}, {"dev", "paws_qqp_train", "paws_qqp_all"}),
    }
    for name, tables in expected.items():
        for protocol, sets in zip(("standard", "paper-like"), tables, strict=True):
            found = {one.name for one in load_task(name).sets if protocol in one.protocols}
            assert found == sets, (name, protocol)


def test_the_paper_s_sets_are_unions():
    for task, union, rows in (
        ("sst2", "imdb_cont", 588),
        ("sst2", "imdb_cad", 733),
        ("qqp", "paws_qqp_all", 12665),
        ("mnli", "anli_test", 3200),
    ):
        task = load_task(task)
        parts = [task.named(part).expected_counts["rows"] for part in task.named(union).union_of]
        assert sum(parts) == task.named(union).expected_counts["rows"] == rows


@pytest.mark.parametrize("name", HUMAN)
def test_label_counts_add_up_to_the_rows(name):
    for spec in load_task(name).sets:
        labels = [count for key, count in spec.expected_counts.items() if key != "rows"]
        assert not labels or sum(labels) == spec.expected_counts["rows"], spec.name


REAL = {  # label counts of the real files, counted with cut and sort
    ("sst2", "train"): [29780, 37569],
    ("sst2", "dev"): [428, 444],
    ("sst2", "imdb_cont_dev"): [52, 48],
    ("sst2", "imdb_cont_dev_original"): [48, 52],
    ("sst2", "imdb_cad_dev"): [123, 122],
    ("sst2", "imdb_cad_dev_original"): [122, 123],
    ("sst2", "imdb_cad_dev_paired"): [245, 245],
    ("qqp", "train"): [5667, 3333],
    ("qqp", "dev"): [622, 378],
    ("qqp", "paws_qqp"): [148, 52],
    ("mnli", "dev_matched"): [3479, 3123, 3213],
    ("lingnli", "train"): [14995, 14995, 14993],
    ("lingnli", "dev"): [2560, 2443, 2368],
    ("mnli", "anli_r1_dev"): [334, 333, 333],
    ("mnli", "hans"): [3000, 3000],
}


def test_the_real_files(shared):
    for (name, part), counts in REAL.items():
        task = load_task(name)
        texts = load_set(task.named(part), task.labels, str(shared / "data"))
        assert [texts.labels.count(i) for i in range(len(counts))] == counts, part
        assert len(texts) == sum(counts)
        assert "imdb" not in part or not any("<br" in text for text in texts.texts[0])
    files = {load_task(name).named(part).file for name, part in REAL}
    there = {
        str(path.relative_to(SHARED / "data"))
        for path in (shared / "data").rglob("*")
        if path.suffix in (".tsv", ".jsonl", ".txt") and "corpus" not in path.parts
    }
    assert there <= files, there - files


def test_check_prints_counts_next_to_the_published_ones(data, capsys):
    command.main(["check", "mnli", "--data_dir", str(data)])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "5     entailment 1, neutral 2, contradiction 2" in lines["anli_r1_dev"]
    assert "1000: entailment 334" in lines["anli_r1_dev"] and "differs" in lines["anli_r1_dev"]
    assert "entailment 2, non-entailment 3" in lines["hans"] and " 15 " in lines["anli_test"]


def test_check_tells_what_is_missing(tmp_path, capsys):
    write_layouts(tmp_path)
    (tmp_path / "hans/heuristics_evaluation_set.txt").unlink()
    command.main(["check", "mnli", "--data_dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "not found" in printed and "published at https://github.com/tommccoy1/hans" in printed
    path = tmp_path / "anli/R1/dev.jsonl"
    path.write_text(path.read_text().replace('"label": "n"', '"label": "x"', 1))
    with pytest.raises(UsageError, match=r"dev\.jsonl, line 3: label 'x' is none of entailment"):
        command.main(["check", "mnli", "--data_dir", str(tmp_path)])


def test_check_reads_the_settings_too(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(WHOLE + "settings:\n  alhpa: 0.3\n")
    with pytest.raises(UsageError, match="line 7: unknown setting 'alhpa'; did you mean 'alpha'"):
        command.main(["check", str(path)])


def test_check_takes_the_settings_that_training_takes(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    more = "settings: {early_stopping_patience: 2}\nmethods: {cutoff: {cutoff_rate: 0.2}}\n"
    path.write_text(WHOLE + more)
    with pytest.raises(UsageError, match="f: no such file"):  # after the settings were read
        command.main(["check", str(path)])
    for task in ("demo", "demo-pairs"):
        command.main(["check", task])
    assert capsys.readouterr().out.count("ood_adversarial") == 2


def test_the_list_has_every_task_source_and_licence(capsys):
    command.main([])
    printed = capsys.readouterr().out
    for name in names():
        assert f"{name}: {load_task(name).description}" in printed
    assert "CC BY-NC 4.0" in printed and "https://github.com/allenai/contrast-sets" in printed


def test_a_pipe_that_its_reader_closed_is_no_error():
    """As in `python -m masktuning.tasks | head`."""
    command = [sys.executable, "-m", "masktuning.tasks"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # long before the command has anything to print
    assert process.stderr.read() == "" and process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check"], "which task"),
        (["check", "mnlu"], "unknown task 'mnlu'; did you mean 'mnli'"),
        (["chekc"], "invalid choice"),
        (["list", "mnli"], "go with check"),
        (["check", "mnli", "--data_dir", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_command_errors(words, message):
    with pytest.raises(UsageError, match=message):
        command.main(words)


BASE = """name: mine
labels: [no, "yes"]
sets:
  train: {role: train, text: [t], label: l, file: f}
"""


NEAR = "  near: {{role: {}, text: [t], label: l, file: g, repeats: [far]}}\n"
FAR = """name: x
labels: [a, b]
sets:
  far: {role: ood, text: [t], label: l, file: f}
"""
WHOLE = FAR.replace("role: ood", "role: train").replace("[a, b]", "[c, d]")
NLI_TEXTS = WHOLE.replace("[c, d]", "[entailment, neutral, contradiction]")
NLI_TEXTS += "  dev: {role: dev, text: [t], label: l, file: f}\n"
WHOLE += "  dev: {role: dev, text: [t], label: l, file: f}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BASE, 'line 2: labels must be a text, not False; put it in quotes'),
        (BASE.replace("[no,", '["no",').replace("t]", "t, u, v]"), "line 4: text must be a list"),
        ('name: x\nname: y\nlabels: [a, b]\nsets: {}\n', "line 2: 'name' is given twice"),
        (
            "name: x\nlabels: [a, b]\nsets:\n  dev:\n    role: dev\n    text: [t]\n"
            "    label: l\n    file: f\n    strip_breaks: 3\n",
            "line 9: strip_breaks must be true or false, not 3",
        ),
        (
            "name: x\nlabels: [a, b]\nsets:\n  far:\n    role: ood\n    text: [t]\n"
            "    label: l\n    file: f\n    labels: [a, c]\n",
            "line 4: label_map must say which of a, c 'b' becomes",
        ),
        (
            "name: x\nlabels: [a, b]\nsets:\n  far:\n    role: ood\n    union_of: [near]\n",
            "line 6: 'near' is not another set of this file",
        ),
        (
            "name: x\nlabels: [a, b]\nsets:\n  far:\n    role: ood\n    text: [t]\n"
            "    label: l\n    hub: {id: x, split: y}\n",
            "line 8: hub needs an id, a split and a pinned revision",
        ),
        (FAR + "include: {sst2: [imdb_cad]}\n", "sets must hold one of role train"),
        (FAR + "  near: {role: dev, union_of: [far]}\n", "line 5: a union of other sets must have"),
        (FAR + "  near: {role: ood, union_of: [far], f1: c}\n", "line 5: f1 must be macro or"),
        (FAR.replace("f}", "f, repeats: [near]}"), "line 4: 'near' is not another set"),
        (FAR + NEAR.format("dev"), "line 5: repeats is for sets of role ood"),
        (FAR.replace("f}", "f, repeats: [near]}") + NEAR.format("ood"), "that repeat no others"),
        (FAR + "  a/b: {role: ood, union_of: [far]}\n", "line 5: 'a/b': a set's name consists of"),
        (FAR.replace("f}", "f, expected_counts: {row: 3}}"), "line 4: expected_counts may give a,"),
        (FAR.replace("f}", "f, hash_split: tenth}"), "line 4: hash_split must be held_out or kept"),
        (FAR.replace("f}", "f, lengths: [0]}"), "line 4: lengths must be 1 token or more"),
        (FAR.replace("file: f", "hub: {id: x, split: y, revision: z, name: v}"), "hub takes"),
        (FAR.replace("f}", "f, label_map: {a: b}}"), "line 4: label_map maps to the set's own"),
        (FAR.replace("f}", "f, labels: [a, b], label_map: {c: b}}"), "line 4: 'c' is none of"),
        (WHOLE + "  e: {role: ood, text: [t, u], label: l, file: f}\n", "line 3: some sets"),
        (FAR.replace("[a, b]", "[a, a]"), "line 2: labels must be a list of two different"),
        (FAR.replace("[a, b]", "[01, 010]"), "line 2: labels must be a text, not 1; put it in"),
        (WHOLE + "include: {sst3: [dev]}\n", "line 6: 'sst3' is none of"),
        (NLI_TEXTS + "include: {mnli: [hans]}\n", "line 3: some sets have one"),
        (WHOLE + "include: {sst2: [dev]}\n", "line 6: each of these must be a set of sst2"),
        (WHOLE + "include: {sst2: [imdb_cad]}\n", "line 6: imdb_cad_dev, imdb_cad_test: part of"),
        (WHOLE + "settings:\n  alhpa: 0.3\n", "line 7: unknown setting 'alhpa'; did you"),
    ],
)  # fmt: skip
def test_a_task_file_s_errors_name_the_line(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        load_task(str(path), {"alpha", "learning_rate"})
    assert message in str(caught.value) and str(path) in str(caught.value)
