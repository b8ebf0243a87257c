"""The tables of the papers: their figures, their layout, their runs, and the command."""

import csv
import io
import itertools
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from masktuning import reproduce
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.experiments.outcome import Outcome, SetOutcome
from masktuning.experiments.papers import estimate, examples, rebuild, requests, steps
from masktuning.experiments.papers.layout import Layout
from masktuning.experiments.papers.requests import Wanted, flags_of, notes, parts
from masktuning.experiments.papers.small import in_small
from masktuning.experiments.papers.spec import load_table
from masktuning.tasks import load_task

# The paper's figures column by column, each for plain fine-tuning, augmented, without integrated
# loss, sequential and Mask-tuning, with BERT, RoBERTa and BART.
TABLE_3 = {
    "SST-2": """92.43 93.11 92.07 91.97 93.11  94.49 93.46 93.00 93.26 94.60
                93.23 93.11 93.00 92.88 93.80""",
    "IMDB-Cont": """79.08 80.27 79.00 80.97 82.75  84.50 85.54 81.80 84.86 88.50
                    82.48 82.99 82.02 82.65 83.00#""",
    "IMDB-CAD": """87.00 86.49 84.99 86.76 88.32  88.40 89.76 87.31 89.00 91.62
                   86.03 86.63 85.80 86.13 87.83""",
    "MNLI m": """84.30 84.06 83.57 83.40 84.75  87.60 87.94 86.88 87.50 87.72
                 84.60 85.90 84.02 84.81 86.08""",
    "MNLI mm": """83.40 84.28 84.22 84.00 85.10  87.50 87.41 87.24 87.40 87.83
                  84.80 86.00 84.10 84.25 86.12""",
    "HANS": """56.90 57.00 50.51 55.60 69.52  67.80 72.66 65.16 71.69 75.70
               56.30 65.60 55.12 58.00 70.48""",
    "AdvNLI": """24.12 25.70 23.60 24.20 26.32  31.20 32.20 30.00 30.70 37.40
                 30.51 32.80 32.40 32.50 35.31""",
    "QQP": """90.80 91.14 89.92 91.00 91.54  91.50 91.26 90.09 91.20 91.62
              90.50 9.60* 89.34 89.95 91.03""",
    "PAWS": """32.80 33.93 38.15 34.82 46.74  38.45 42.06 41.00 39.91 44.37
               32.27 33.42 35.21 34.62 45.71""",
}
CARRIED_OVER = {
    ("bert-base-uncased", "learned_mixin"): {"MNLI m/mm": "83.97/-", "HANS": "66.15"},
    ("bert-base-uncased", "poe"): {"MNLI m/mm": "84.19/-", "HANS": "66.31"},
    ("bert-base-uncased", "confidence_regularization"): {
        "MNLI m/mm": "84.30/84.80",
        "HANS": "69.10",
        "QQP": "91.50",
        "PAWS": "39.80",
    },
    ("bert-base-uncased", "intermediate_parsing"): {"MNLI m/mm": "84.40/-", "HANS": "56.70"},
    ("roberta-base", "intermediate_parsing"): {"MNLI m/mm": "87.70/-", "HANS": "66.30"},
}
WITHOUT_PAIRS = {
    "cutoff": "95.40 85.50 89.20 88.40/- 68.40 31.10 92.00 38.80",
    "hiddencut": "95.80 87.80 90.40 88.20/- 71.20 32.80 92.00 41.50",
}
# Accuracy and its deviation, macro-F1 and its deviation, as on L3Masking's poster.
L3MASKING = {
    ("roberta-base", "ACL-ARC"): [
        (71.73, 4.06, 59.44, 6.70),
        (78.94, 1.76, 70.30, 2.20),
        (79.12, 1.60, 73.30, 2.90),
    ],
    ("roberta-base", "Ohsumed"): [
        (70.07, 0.54, 60.92, 0.91),
        (69.92, 0.64, 64.83, 0.37),
        (73.38, 0.48, 65.02, 0.61),
    ],
    ("roberta-base", "IMDb"): [
        (88.84, 0.32, 88.89, 0.30),
        (91.29, 0.27, 91.30, 0.22),
        (91.32, 0.15, 91.13, 0.09),
    ],
    ("domain", "ACL-ARC"): [
        (80.36, 2.45, 71.84, 2.73),
        (80.14, 1.38, 70.88, 3.06),
        (82.50, 1.90, 74.10, 2.40),
    ],
    ("domain", "Ohsumed"): [
        (71.02, 0.42, 62.85, 0.63),
        (70.75, 0.36, 62.70, 0.61),
        (71.66, 0.78, 63.70, 0.60),
    ],
}


def by_column(table):
    """The paper's figures of a table, with the dev sets of MNLI apart, in the order of the rows."""
    found = {}
    for model, method in itertools.product(table.models, table.methods):
        for name, text in table.figures[model.name, method.name].items():
            both = dict(zip(("MNLI m", "MNLI mm"), text.split("/"), strict=False))
            for column, figure in both.items() if "/" in text else [(name, text)]:
                found.setdefault(column, []).append(figure)
    return found


def test_the_figures_of_the_ablations_are_those_of_the_paper():
    found = by_column(load_table("table3"))
    assert found == {name: text.split() for name, text in TABLE_3.items()}


def test_the_figures_of_the_main_table_are_those_of_the_paper():
    one, three = load_table("table1"), load_table("table3")
    for model, method in itertools.product(one.models, ("finetuning", "mask_tuning")):
        ablation = dict(three.figures[model.name, method])
        if (model.name, method) == ("facebook/bart-base", "mask_tuning"):
            assert ablation["IMDB-Cont"] == "83.00#"
            ablation["IMDB-Cont"] = "84.00#"  # in which the paper's tables differ
        assert one.figures[model.name, method] == ablation
    figures = {k: v for k, v in one.figures.items() if k[1] not in ("finetuning", "mask_tuning")}
    for method, text in WITHOUT_PAIRS.items():
        assert " ".join(figures.pop(("roberta-base", method)).values()) == text
    assert figures == CARRIED_OVER
    (gpt,) = one.only.values()
    assert gpt == {"MNLI m/mm": "77.6/-", "HANS": "75.3", "QQP": "83.5*", "PAWS": "73.7"}


def test_the_figures_of_l3masking_are_those_of_its_poster():
    table = load_table("l3masking")
    count = 0
    for (model, column), rows in L3MASKING.items():
        for method, row in zip(table.methods, rows, strict=True):
            figures = table.figures[model, method.name]
            accuracy, its_sd, f1, f1_sd = row
            assert figures[column] == f"{accuracy:.2f}±{its_sd:.2f}"
            assert figures[f"{column} F1"] == f"{f1:.2f}±{f1_sd:.2f}"
            count += 2
    assert count == sum(map(len, table.figures.values())) == 30


@pytest.mark.parametrize("name", ["table1", "table3", "l3masking"])
def test_columns_show_sets_that_the_tasks_have(name):
    table = load_table(name)
    for column in [*table.columns, *in_small(table).columns]:
        task = load_task(column.task)
        for protocol in ("standard", "paper-like"):
            for one in column.sets(protocol):
                spec = task.named(one)
                assert spec.role != "train"
                assert not spec.protocols or protocol in spec.protocols or name == "l3masking"
                if column.score == "f1":
                    assert spec.f1 == "macro"
                assert column.score != "accuracy_sum" or spec.label_map
    marks = set(
        re.findall(r"[*#]", " ".join(t for f in table.figures.values() for t in f.values()))
    )
    marks |= set(re.findall(r"[*#]", " ".join(t for f in table.only.values() for t in f.values())))
    assert marks == {note[0] for note in table.notes if note[0] in "*#"}


def test_the_main_table_has_24_rows_in_nine_comparisons():
    table = load_table("table1")
    assert len(table.models) * len(table.methods) == 24
    assert len(table.cannot) == 3
    found = list(parts(table, wanted()))
    assert len(found) == 9
    studies = {part.request.study for part in found}
    assert {"table1-roberta-base-sst2", "table1-bart-base-qqp"} <= studies and len(studies) == 9
    assert {part.request.storage for part in found} == {"sqlite:///tables/study.db"}


def wanted(**changes):
    defaults = {
        "flags": [],
        "preset": "paper",
        "seeds": 5,
        "output_dir": reproduce.Path("tables"),
        "storage": None,
        "jobs": 1,
        "keep": "best",
        "retry_failed": False,
        "embedded": EMBEDDED,
    }
    return Wanted(**{**defaults, **changes})


def test_the_requests_of_a_table(monkeypatch):
    table = load_table("table1").select(["roberta-base"], [], ["mnli"])
    treebanks = "--treebank ewt.conllu --dev_treebank dev.conllu".split()
    (part,) = parts(table, wanted(flags=treebanks))
    request = part.request
    assert request.flags == (
        "--task mnli --model_name_or_path roberta-base --preset paper".split() + treebanks
    )
    assert [one.name for one in request.variants] == [
        "finetuning",
        "learned_mixin:bias_model=overlap",
        "poe",
        "confidence_regularization:bias_model=overlap",
        "intermediate_parsing",
        "cutoff",
        "hiddencut",
        "mask_tuning",
    ]
    assert request.grid == {"learning_rate": ("2e-5", "3e-5", "4e-5", "5e-5")}
    assert (request.seeds, request.search_seeds, request.baseline) == (5, 1, "finetuning")
    chosen = wanted(flags=["--learning_rate", "3e-5"])
    (part,) = parts(table.select([], ["poe"], []), chosen)
    assert part.request.grid == {} and part.request.baseline == "poe"
    said = "IPT-standard is not trained without --treebank and --dev_treebank."
    assert notes(table, wanted()) == [said]
    monkeypatch.setattr(requests, "version_of", lambda package: "not installed")
    assert notes(table, wanted(flags=treebanks)) == [
        f"{label} is not trained without scikit-learn."
        for label in ("Learned-Mixin+H", "Regularized-conf")
    ]
    domain = next(one for one in load_table("l3masking").models if one.name == "domain")
    assert "emilyalsentzer/Bio_ClinicalBERT" in flags_of(domain, "ohsumed", wanted())
    small = in_small(load_table("table1"))
    assert [part.task for part in parts(small, wanted(preset=None))] == ["demo", "demo-pairs"]
    assert flags_of(small.models[0], "demo", wanted(preset=None)) == ["--task", "demo"]


def outcome(**shares):
    """An outcome whose sets have these shares of 100 examples correct."""
    sets = {
        name: SetOutcome("dev", np.arange(100) < round(100 * share), {"accuracy_sum": share / 2})
        for name, share in shares.items()
    }
    return Outcome(sets, 1.0, 1.0, "here", "folder")


@pytest.fixture
def filled():
    table = load_table("table1").select(["roberta-base"], ["finetuning", "cutoff"], ["mnli", "qqp"])
    runs = [
        outcome(dev_matched=0.8, dev_mismatched=0.7, hans=0.5, anli_test=0.3, anli_r1_test=0.2),
        outcome(dev_matched=0.9, dev_mismatched=0.7, hans=0.6, anli_test=0.3, anli_r1_test=0.2),
    ]
    found = {("roberta-base", "finetuning", "mnli"): dict(enumerate(runs, 1))}
    found["roberta-base", "cutoff", "qqp"] = {1: outcome(dev=0.91)}
    return Layout(table, "standard", found, ["RoBERTa-base on qqp: 1_2 failed"])


def test_the_layout_puts_the_papers_figures_next_to_ours(filled):
    assert filled.body() == [
        ("model", "method", "MNLI m/mm", "HANS", "HANS (sum)", "AdvNLI", "QQP", "PAWS"),
        (
            "RoBERTa-base",
            "fine-tuning",
            "85.00 ± 7.07 / 70.00 ± 0.00 (paper 87.60/87.50)",
            "55.00 ± 7.07 (paper 67.80)",
            "27.50 ± 3.54",
            "30.00 ± 0.00 (paper 31.20)",
            "- (paper 91.50)",
            "- (paper 38.45)",
        ),
        (
            "RoBERTa-base",
            "Span Cutoff",
            "- (paper 88.40/-)",
            "- (paper 68.40)",
            "-",
            "- (paper 31.10)",
            "91.00 (paper 92.00)",
            "- (paper 38.80)",
        ),
    ]
    text = filled.text()
    assert "standard protocol" in text and text.endswith("RoBERTa-base on qqp: 1_2 failed")
    like = Layout(filled.table, "paper-like", filled.found, [])
    assert like.body()[0][-2:] == ("PAWS", "PAWS (all)")
    assert like.body()[1][5] == "20.00 ± 0.00 (paper 31.20)"


def test_the_layout_in_other_forms(filled, tmp_path):
    assert "| RoBERTa-base | fine-tuning | 85.00 ± 7.07 / 70.00" in filled.markdown()
    assert "\n- \\# is 84.00" in filled.markdown() and "\n- \\* The asterisk" in filled.markdown()
    latex = filled.latex()
    assert "55.00 $\\pm$ 7.07 (paper 67.80)" in latex and "1\\_2 failed" in latex
    assert latex.count("\\\\\n") == 3 and "\\begin{tabular}{llcccccc}" in latex
    rows = list(csv.DictReader(io.StringIO(filled.csv())))
    first = rows[0]
    assert (first["set"], first["mean"], first["sd"]) == ("dev_matched", "85.0000", "7.0711")
    assert (first["seeds"], first["paper"], rows[1]["paper"]) == ("2", "87.60", "87.50")
    missing = next(row for row in rows if row["method"] == "cutoff")
    assert (missing["mean"], missing["seeds"], missing["paper"]) == ("", "0", "88.40")
    paths = filled.write(tmp_path)
    assert sorted(path.suffix for path in paths) == [".csv", ".md", ".tex", ".txt"]
    assert all(path.read_text(encoding="utf-8") for path in paths)


def test_rows_that_are_not_run_are_in_the_table():
    body = Layout(load_table("table1"), "standard", {}, []).body()
    assert len(body) == 1 + 24 + 1
    assert body[-1][:2] == ("GPT-3 few-shot", "-") and "- (paper 83.5*)" in body[-1]
    small = Layout(in_small(load_table("table3")), "standard", {}, [])
    assert small.body()[0] == ("model", "method", "dev", "ood_balanced", "ood_adversarial")
    assert "paper 9" not in small.text() and "are not shown" in small.text()


def test_rebuild_fills_the_table_and_names_what_failed(monkeypatch, tmp_path):
    asked = []

    def compare(request):
        asked.append(request)
        outcomes = {"finetuning": {1: outcome(dev=0.9), 2: outcome(dev=0.8)}}
        return SimpleNamespace(outcomes=outcomes, failures={"final cutoff seed=1": "no memory"})

    monkeypatch.setattr(rebuild, "compare", compare)
    monkeypatch.setattr(rebuild, "write_report", lambda comparison, folder: "")
    table = load_table("table1").select(["roberta-base"], ["finetuning", "cutoff"], ["qqp"])
    text, any_run = rebuild.rebuild(table, wanted(seeds=2, output_dir=tmp_path), "standard")
    assert any_run
    assert "85.00 ± 7.07 (paper 91.50)" in text
    assert "RoBERTa-base on qqp: final cutoff seed=1 failed: no memory" in text
    assert "Span Cutoff has 0 of 2 seeds." in text
    assert [one.study for one in asked] == ["table1-roberta-base-qqp"]
    assert "85.00" in (tmp_path / "table1-standard.txt").read_text(encoding="utf-8")


def test_a_table_of_which_every_run_failed_has_exit_status_1(monkeypatch, tmp_path, capsys):
    def compare(request):
        return SimpleNamespace(outcomes={"finetuning": {}}, failures={"final seed=1": "no memory"})

    monkeypatch.setattr(rebuild, "compare", compare)
    monkeypatch.setattr(rebuild, "write_report", lambda comparison, folder: "")
    words = "--table 1 --models roberta-base --methods finetuning --tasks qqp --seeds 1"
    with pytest.raises(SystemExit, match="1"):
        reproduce.main([*words.split(), "--output_dir", str(tmp_path)])
    assert "failed: no memory" in capsys.readouterr().out


def test_a_comparison_that_cannot_be_run_is_named_and_the_others_go_on(monkeypatch, tmp_path):
    def compare(request):
        if "sst2" in request.study:
            raise UsageError("sst2/train.tsv: not found")
        return SimpleNamespace(outcomes={"finetuning": {1: outcome(dev=0.9)}}, failures={})

    monkeypatch.setattr(rebuild, "compare", compare)
    monkeypatch.setattr(rebuild, "write_report", lambda comparison, folder: "")
    table = load_table("table1").select(["roberta-base"], ["finetuning"], ["sst2", "qqp"])
    text, _ = rebuild.rebuild(table, wanted(seeds=1, output_dir=tmp_path), "standard")
    assert "90.00 (paper 91.50)" in text
    assert "RoBERTa-base on sst2 has no result: sst2/train.tsv: not found." in text
    alone = table.select([], [], ["sst2"])
    with pytest.raises(UsageError, match=r"sst2/train\.tsv: not found"):
        rebuild.rebuild(alone, wanted(seeds=1, output_dir=tmp_path), "standard")


def test_a_table_of_which_nothing_can_be_run_says_why(tmp_path):
    table = load_table("table1").select([], ["intermediate_parsing"], [])
    with pytest.raises(UsageError, match=r"there is nothing to compare\. .* without --treebank"):
        rebuild.rebuild(table, wanted(seeds=1, output_dir=tmp_path), "standard")


def test_the_examples_of_table_2(monkeypatch, tmp_path):
    records = [
        {"epoch": e, "example_id": i, "marked": f"text {i} [a -> {'bc'[e]}]"}
        for e in range(2)
        for i in (7, 3, 5, 4)
    ]
    log = tmp_path / examples.FILE
    log.write_text("".join(json.dumps(one) + "\n" for one in records))
    run = Outcome({}, 1.0, 1.0, "elsewhere", str(tmp_path))
    part = SimpleNamespace(outcomes={"mask_tuning": {1: run}}, failures={})
    monkeypatch.setattr(examples, "run_part", lambda part: found.pop())
    arguments = reproduce.ReproduceArguments(table="2")
    table = reproduce._table(arguments)
    assert (table.name, table.seeds, table.grid) == ("table2", 1, {})
    found = [part]
    text = examples.rebuild_examples(table, wanted(seeds=1, output_dir=tmp_path))
    assert "BERT-base on sst2" in text and "text 4" not in text
    lines = [line.split() for line in text.splitlines() if "->" in line and line[0] in "123"]
    assert [line[:2] for line in lines] == [[t, e] for t in "123" for e in "12"]
    log.unlink()
    found = [part]
    with pytest.raises(UsageError, match="on elsewhere has the perturbed texts"):
        examples.rebuild_examples(table, wanted(seeds=1, output_dir=tmp_path))
    found = [SimpleNamespace(outcomes={}, failures={"final": "out of memory"})]
    with pytest.raises(UsageError, match="no result: out of memory"):
        examples.rebuild_examples(table, wanted(seeds=1, output_dir=tmp_path))


@pytest.fixture
def clocked(monkeypatch):
    """A clock by which everything takes a second, and models that cost nothing."""
    ticks = itertools.count()
    monkeypatch.setattr(steps.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(steps, "ShapeTimer", lambda shape: SimpleNamespace(seconds=lambda *_: 2.0))


def test_the_dry_run_of_the_main_table(monkeypatch, clocked):
    ratios = {"mask_tuning": 2.0, "cutoff": 2.5}

    def method_step(words, embedded):
        method = words[words.index("--method") + 1]
        return steps.Timed(ratios.get(method, 1.0), 1.0)

    monkeypatch.setattr(steps, "method_step", method_step)
    text = estimate.dry_run(load_table("table1"), wanted())
    rows = [line for line in text.splitlines() if line.startswith(("BERT-", "RoBERTa", "BART-"))]
    assert len(rows) == 24
    assert "total" in text and "24 rows" in text
    cells = {(r[:12].strip(), r[14:30].strip()): r.split() for r in rows}
    plain = cells["RoBERTa-base", "fine-tuning"]
    steps_of = [3 * -(-n // batch) for n, batch in ((67349, 16), (392702, 32), (363846, 32))]
    assert plain[-4:-1] == ["12", "15", f"{9 * sum(steps_of):,}"]
    assert plain[-1] == f"{9 * sum(steps_of) * 2 / 3600:,.0f}"
    assert cells["BART-base", "HiddenCut"][-4:] == ["0", "0", "0", "0.00"]


def test_the_dry_run_counts_copies_and_stages(monkeypatch, clocked):
    monkeypatch.setattr(
        steps,
        "method_step",
        lambda words, _: steps.Timed(1.0, 2.0 if "augmentation" in words else 1.0),
    )
    table = load_table("table3").select(["roberta-base"], [], ["sst2"])
    rows = {m.name: cost for _, m, _, cost in estimate.Estimate(table, wanted()).rows()}
    plain = rows["finetuning"].steps
    assert rows["mask_tuning"].steps == plain == 9 * 3 * 4210
    assert rows["augmentation"].steps == 9 * 3 * 8419
    assert rows["sequential"].steps == 2 * plain
    fewer = wanted(flags=["--max_train_samples", "160", "--learning_rate", "1e-5"], seeds=2)
    rows = {m.name: cost for _, m, _, cost in estimate.Estimate(table, fewer).rows()}
    assert (rows["finetuning"].search, rows["finetuning"].steps) == (0, 2 * 3 * 10)


def test_a_method_is_timed_by_steps_of_its_own(capsys):
    words = "--task demo-pairs --max_train_samples 16 --max_eval_samples 4".split()
    words += "--per_device_train_batch_size 4 --method augmentation".split()
    timed = steps.method_step(words, EMBEDDED)
    assert timed.copies == 2.0 and 0 < timed.seconds < 60
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("shape", ["bert", "roberta", "bart"])
def test_a_shape_is_timed(monkeypatch, shape):
    full = steps.SHAPES[shape]()
    assert full.hidden_size == 768 and full.vocab_size == (30522 if shape == "bert" else 50265)
    layers = {"encoder_layers": 1, "decoder_layers": 1} if shape == "bart" else {}
    small = full.__class__(
        vocab_size=99,
        **(
            {"d_model": 16, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, **layers}
            | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
            if shape == "bart"
            else {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        ),
    )
    monkeypatch.setitem(steps.SHAPES, shape, lambda: small)
    ticks = itertools.count()
    monkeypatch.setattr(steps.time, "perf_counter", lambda: float(next(ticks)))
    timer = steps.ShapeTimer(shape)
    # A second for the update, and one for both passes of 64 rows of 4 tokens.
    assert timer.seconds(64, 4) == 2.0 and timer.seconds(256, 4) == 5.0


def test_the_lengths_are_those_that_were_counted():
    counted = json.loads((ROOT / "benchmarks" / "lengths.json").read_text())
    for task, length in steps.TOKENS.items():
        counts = counted[task]["counts"]
        assert round(sum(i * n for i, n in enumerate(counts)) / sum(counts)) == length


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--table is missing: one of 1, 2, 3, l3masking"),
        ("--table 4", "invalid choice: '4'"),
        ("--table 1 --models roberta", "unknown model of this table 'roberta'; did you mean"),
        ("--table 1 --methods mask-tuning", "did you mean 'mask_tuning'"),
        ("--table 1 --tasks sst", "unknown task of this table 'sst'; did you mean 'sst2'?"),
        ("--table 3 --methods poe", "unknown method of this table 'poe'"),
        ("--table 1 --methods poe --tasks sst2", "the table trains none of these models"),
        ("--table 2 --seeds 3", "leave out --methods and --seeds"),
        ("--table 1 --seeds 0", "seeds is 0: give 1 or more"),
        ("--table 1 --modells x", "unknown flag 'modells'; did you mean 'models'?"),
        ("--table 1 --max_train_sample 5", "did you mean 'max_train_samples'?"),
        ("--table 1 --method poe", "--method is set by the table: give --methods"),
        ("--table 1 --task sst2", "--task is set by the table: give --tasks"),
        ("--table 1 --protocol papers", "invalid choice: 'papers'"),
        ("1", "unexpected argument '1'"),
    ],
)
def test_bad_input_is_one_line(words, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        reproduce.main(words.split())
    assert "\n" not in str(error.value)


def test_help_has_the_lines_to_copy(capsys):
    reproduce.main(["--help"])
    printed = capsys.readouterr().out
    assert "--table 3 --preset demo" in printed and "--protocol" in printed


@pytest.mark.slow
def test_the_ablations_in_small_from_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reproduce"])
    reproduce.main("--table 3 --preset demo --output_dir out".split())
    printed = capsys.readouterr().out
    assert "ood_adversarial" in printed and "seeds." not in printed
    rows = list(csv.DictReader((tmp_path / "out" / "table3-demo-standard.csv").open()))
    assert len(rows) == 5 * 3 and all(row["seeds"] == "2" and row["sd"] for row in rows)
    reproduce.main("--table 3 --preset demo --output_dir out --protocol paper-like".split())
    again = list(csv.DictReader((tmp_path / "out" / "table3-demo-paper-like.csv").open()))
    assert again == rows  # from the same runs
