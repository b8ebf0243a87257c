"""Writes five rows of each set in the layout of its authors, with that layout's difficulties."""

from __future__ import annotations

import json
from pathlib import Path

REVIEWS = [  # label, text as CSV writes it (quotes doubled), text as it reads
    ("Negative", '"A ""classic""?<br /><br />It was not."', 'A "classic"? It was not.'),
    ("Positive", "Plain and good.<br />Twice.", "Plain and good. Twice."),
    ("Positive", '"It\'s a ""must"""', 'It\'s a "must"'),
    ("Negative", "Dull, dull, dull", "Dull, dull, dull"),
    ("Negative", '"Tabs\there"', "Tabs\there"),
]  # fmt: skip
NLI = [  # premise, hypothesis, label
    ('He said "no', "He spoke", "entailment"),
    ("It rains", 'It is "dry"', "contradiction"),
    ("She runs", "She runs fast", "neutral"),
    ("A man sleeps", "A man is awake", "contradiction"),
    ("Naïve café", "A place", "neutral"),
]
HANS = [
    ("non-entailment", "The judge saw the actor .", "The actor saw the judge .", "lexical_overlap"),
    ("entailment", "The judge saw the actor .", "The judge saw the actor .", "lexical_overlap"),
    ("entailment", "The actor and the judge slept .", "The judge slept .", "subsequence"),
    ("non-entailment", "The judge near the actor slept .", "The actor slept .", "subsequence"),
    ("non-entailment", "If the judge slept , he won .", "The judge slept .", "constituent"),
]
QUESTIONS = [
    ('What is "AI"?', "What's AI?", 1),
    ("How do I cook?", "How do I bake?", 0),
    ('Is 5" long?', "Is five inches long?", 1),
    ("Who won?", "Who lost?", 0),
    ("Café or tea?", "Tea or café?", 0),
]


def write_layouts(folder: Path) -> Path:
    """Writes all sets to a folder for --data_dir, and returns it."""
    _tsv(folder / "sst2/train.tsv", "sentence\tlabel", ['a "fine film \t1', "so dull \t0"] * 2)
    _tsv(folder / "sst2/dev.tsv", "sentence\tlabel", ["it 's \"it \t1", "bad \t0"])
    for part in ("dev", "test"):
        rows = [f"{label}\t{raw}" for label, raw, _ in REVIEWS]
        other = {"Negative": "Positive", "Positive": "Negative"}
        edited = [f"{other[label]}\t{raw}" for label, raw, _ in REVIEWS]
        header = "Sentiment\tText"
        _tsv(folder / f"imdb_contrast/{part}_original.tsv", header, rows)
        _tsv(folder / f"imdb_contrast/{part}_contrast.tsv", header, edited)
        _tsv(folder / f"imdb_cad/orig/{part}.tsv", header, rows[::-1])
        _tsv(folder / f"imdb_cad/new/{part}.tsv", header, edited)
        pairs = [
            f"{row}\t{100 + i}"
            for i, two in enumerate(zip(rows, edited, strict=True))
            for row in two
        ]
        paired = folder / f"imdb_cad/combined/paired/{part}_paired.tsv"
        _tsv(paired, f"{header}\tbatch_id", pairs)
    _glue_mnli(folder / "mnli")
    for name in ("train", "val"):
        _jsonl(
            folder / f"lingnli/{name}.jsonl",
            [{"premise": p, "hypothesis": h, "label": label} for p, h, label in NLI],
        )
    for r in (1, 2, 3):
        for part in ("dev", "test"):
            rows = [
                {"uid": str(i), "context": p, "hypothesis": h, "label": label[0], "reason": ""}
                for i, (p, h, label) in enumerate(NLI)
            ]
            _jsonl(folder / f"anli/R{r}/{part}.jsonl", rows)
    columns = "gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    columns += "sentence2_parse sentence1 sentence2 pairID heuristic subcase template"
    _tsv(
        folder / "hans/heuristics_evaluation_set.txt",
        columns.replace(" ", "\t"),
        [
            "\t".join([label, "( x", "( y", "(ROOT", "(ROOT", p, h, f"ex{i}", group, "s", "t"])
            for i, (label, p, h, group) in enumerate(HANS)
        ],
    )
    columns = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    rows = [f"{i}\t1\t2\t{a}\t{b}\t{label}" for i, (a, b, label) in enumerate(QUESTIONS)]
    traps = ["7\t1\t2\tcut off", "8\t1\t2\tHalf a pair?\t\t0"]
    _tsv(folder / "qqp/train.tsv", columns, [*rows[:2], *traps, *rows[2:]])
    _tsv(folder / "qqp/dev.tsv", columns, rows)
    for name in ("dev_and_test", "train"):
        rows = [
            f"{i}\t{a.encode()!r}\t{b.encode()!r}\t{label}"
            for i, (a, b, label) in enumerate(QUESTIONS)
        ]
        _tsv(folder / f"paws_qqp/{name}.tsv", "id\tsentence1\tsentence2\tlabel", rows)
    for part in ("train", "test"):
        for label in ("neg", "pos"):
            for i in range(10):
                path = folder / f"aclImdb/{part}/{label}/{i}_7.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(f"{label} review {i}.<br /><br />The end.", encoding="utf-8")
    unlabelled = folder / "aclImdb/train/unsup/0_0.txt"
    unlabelled.parent.mkdir()
    unlabelled.write_text("no label")
    for task, labels in (("acl_arc", ["Uses", "Future"]), ("ohsumed", ["C01", "C23"])):
        for part in ("train", "dev", "test"):
            rows = [{"text": f"text {i}", "label": labels[i % 2], "metadata": {}} for i in range(5)]
            _jsonl(folder / f"{task}/{part}.jsonl", rows)
    return folder


def _glue_mnli(folder: Path) -> None:
    """The twelve columns of train and the sixteen of the dev files; quotes are not escaped."""
    names = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse "
    names += "sentence1_parse sentence2_parse sentence1 sentence2"
    for part, annotators in (("train", 1), ("dev_matched", 5), ("dev_mismatched", 5)):
        header = names.split() + [f"label{i + 1}" for i in range(annotators)] + ["gold_label"]
        rows = [
            "\t".join([str(i), "1", "1e", "fiction", *"()()", p, h, *[label] * (annotators + 1)])
            for i, (p, h, label) in enumerate(NLI)
        ]
        _tsv(folder / f"{part}.tsv", "\t".join(header), rows)


def _tsv(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")


def _jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
