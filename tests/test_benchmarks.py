"""The benchmarks of whole steps and epochs: what they compare is the same work, and is measured.

Shapes: B examples, L tokens.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from families import config_of, tiny_tokenizer
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.append(str(ROOT / "benchmarks"))
import energy
import lengths
import starting_point
import step_watch
from naive_step import NaiveMaskTuning

from masktuning.ops import backends


def run(program, *words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / program), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def naive(family, gathered):
    torch.manual_seed(0)
    config = config_of(family)
    classifier = AutoModelForSequenceClassification.from_config(config)
    mlm = AutoModelForMaskedLM.from_config(config)
    return NaiveMaskTuning(classifier, mlm, tiny_tokenizer(), 0.3, gathered).train()


@pytest.mark.parametrize("family", ["bert", "roberta", "bart"])
def test_the_naive_steps_are_one_step(family):
    """Gathering the masked positions before the head changes neither loss nor gradient."""
    rows = starting_point.random_rows(tiny_tokenizer(), [30, 12, 7, 3])
    batch = dict(tiny_tokenizer().pad(rows, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    found = []
    for gathered in (False, True):
        model = naive(family, gathered)
        torch.manual_seed(1)
        loss = model(**batch)["loss"]
        loss.backward()
        # A tied weight has one name here, and one gradient.
        found.append((loss, {n: p.grad for n, p in model.named_parameters()}))
    (loss, gradients), (other_loss, other_gradients) = found
    torch.testing.assert_close(loss, other_loss)
    scale = max(float(g.norm()) for g in gradients.values() if g is not None)
    assert gradients.keys() == other_gradients.keys() and scale > 0
    for name, gradient in gradients.items():
        other = other_gradients[name]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            assert float((gradient - other).norm()) < 1e-5 * scale, name


def test_the_naive_step_is_equation_1(monkeypatch):
    """Its loss is that of the stock models on the masked and on the perturbed texts."""
    model = naive("bert", False).double()
    tokenizer = tiny_tokenizer()
    rows = starting_point.random_rows(tokenizer, [30, 12])
    batch = dict(tokenizer.pad(rows, return_tensors="pt"))
    batch.pop("token_type_ids", None)
    masked_BL = torch.zeros(2, 30, dtype=torch.bool)
    masked_BL[0, 5] = masked_BL[1, 3] = True
    monkeypatch.setattr(model, "sample", lambda input_ids: masked_BL)
    loss = model(**batch)["loss"]
    ids, texts = batch["input_ids"], {"attention_mask": batch["attention_mask"]}
    shown = ids.clone()
    shown[0, 5] = shown[1, 3] = tokenizer.mask_token_id
    logits = model.mlm(input_ids=shown, **texts).logits
    mlm = (F.cross_entropy(logits[0, 5], ids[0, 5]) + F.cross_entropy(logits[1, 3], ids[1, 3])) / 2
    perturbed = ids.clone()
    for b, t in ((0, 5), (1, 3)):
        order = logits[b, t].argsort(descending=True).tolist()
        perturbed[b, t] = next(i for i in order if i not in tokenizer.all_special_ids)
    classes = model.classifier(input_ids=perturbed, **texts).logits
    expected = 0.3 * mlm + 0.7 * F.cross_entropy(classes, batch["labels"])
    torch.testing.assert_close(loss, expected)


def test_the_naive_step_masks_5_percent_of_each_text():
    model = naive("bert", False)
    rows = starting_point.random_rows(tiny_tokenizer(), [3, 12, 32, 58])
    ids = tiny_tokenizer().pad(rows, return_tensors="pt")["input_ids"]
    masked_BL = model.sample(ids)
    assert masked_BL.sum(1).tolist() == [1, 1, 2, 3]  # of 1, 10, 30 and 56: 0.05, 0.5, 1.5, 2.8
    assert not (masked_BL & torch.isin(ids, torch.tensor(tiny_tokenizer().all_special_ids))).any()


def test_the_lengths_are_those_of_the_data(shared):
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "minilm-l6-mlm")
    entry = lengths.counted("mnli", str(shared / "data"), tokenizer)
    assert entry == json.loads(lengths.FILE.read_text())["mnli"]


@pytest.mark.parametrize(("task", "texts"), [("sst2", 67349), ("mnli", 9815), ("qqp", 9000)])
def test_row_lengths_follow_the_counts(task, texts):
    entry = json.loads(lengths.FILE.read_text())[task]
    counts = torch.tensor(entry["counts"], dtype=torch.float64)
    assert int(counts.sum()) == entry["texts"] == texts
    mean = float((counts * torch.arange(129)).sum() / texts)
    drawn = lengths.row_lengths(task, 20000)
    assert all(counts[length] > 0 for length in drawn)
    assert sum(drawn) / 20000 == pytest.approx(mean, rel=0.02)


@pytest.mark.parametrize("name", ["bert-2x64", "roberta-2x64", "bart-2x64"])
def test_random_models_have_their_shape(name):
    start = starting_point.starting_point(name, num_labels=3)
    family = name.partition("-")[0]
    assert start.classifier.config.model_type == start.mlm.config.model_type == family
    assert start.classifier.config.hidden_size == 64 and start.classifier.config.num_labels == 3
    V = starting_point.VOCABULARY[family]
    assert len(start.tokenizer) == V == start.mlm.get_output_embeddings().weight.shape[0]
    rows = starting_point.random_rows(start.tokenizer, [512, 3], 3)
    assert [len(row["input_ids"]) for row in rows] == [512, 3]
    batch = start.tokenizer.pad(rows, return_tensors="pt")
    assert start.classifier(**batch).logits.shape == (2, 3)


def test_padding_rows_leaves_the_rows_alone():
    tokenizer = tiny_tokenizer()
    rows = starting_point.random_rows(tokenizer, [5, 9])
    padded = starting_point.padded_rows(tokenizer, rows, 20)
    assert [len(row["input_ids"]) for row in rows] == [5, 9]
    assert [len(row["input_ids"]) for row in padded] == [20, 20]
    assert [sum(row["attention_mask"]) for row in padded] == [5, 9]


def test_peak_memory_is_the_highest_total():
    memory = step_watch.PeakMemory()
    memory.on_step_begin(None, SimpleNamespace(global_step=0), None)
    first = torch.ones(1_000_000)
    second = first + 1
    del first
    memory.on_step_end(None, SimpleNamespace(global_step=1), None)
    memory.on_step_begin(None, SimpleNamespace(global_step=1), None)
    third = torch.ones(500_000)
    memory.on_step_end(None, SimpleNamespace(global_step=2), None)
    assert second.sum() + third.sum() > 0
    assert 8_000_000 <= memory.peak < 8_100_000


def test_energy_counters(tmp_path):
    """A package's counter counts, even when it starts again; the cores within it do not."""
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core")):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("9000000\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")
    found = energy.counters(tmp_path)
    before = energy.readings(found)
    assert before == [9.0]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("500000\n")
    assert energy.joules_since(before, found) == {"package-0 (RAPL)": pytest.approx(1.5)}
    assert energy.counters(tmp_path / "absent") == []


def test_an_epoch(tmp_path):
    """Every contender is measured; the ratio and the padding follow from what was run.

    Only the reference back end is left where the C++ module is not built, and is the fast one then.
    """
    if reason := backends.available()["cpp"]:
        pytest.skip(reason)
    out = tmp_path / "epoch.json"
    flags = "--rows 32 --rounds 2 --slow_rounds 1 --model bert-2x64 --task qqp".split()
    printed = run("bench_epoch.py", str(out), *flags)
    assert "c: stock Trainer" in printed
    result = json.loads(out.read_text())
    assert result["command"] == (
        "python benchmarks/bench_epoch.py --task qqp --model bert-2x64 --rows 32 --batch_size 16 "
        "--precision fp32 --rounds 2 --slow_rounds 1 --contenders a,b,c,d,e,f"
    )
    table, seconds = result["contenders"], result["seconds"]
    assert {name[0] for name in table} == set("abcdef") and "f: mask_tuning, reference" in table
    assert len(seconds) == 2
    for name, row in table.items():
        taken = [one for one in seconds if name in one]
        assert len(taken) == (1 if name[0] in "abd" or name == "f: mask_tuning, reference" else 2)
        assert row["rows"] == 16 * len(taken)
        assert row["seconds"] == pytest.approx(sum(one[name] for one in taken))
        assert row["examples_per_s"] == pytest.approx(row["rows"] / row["seconds"])
        ratios = [one[name] / one["c: stock Trainer"] for one in taken]
        assert row["of_stock"] == pytest.approx(sum(ratios) / len(taken))
        assert row["of_stock_range"] == [min(ratios), max(ratios)]
    real = sum(lengths.row_lengths("qqp", 32)[:16])
    assert table["d: stock Trainer, padded to 128"]["real_token_share"] == real / (16 * 128)


@pytest.mark.slow
def test_two_processes(tmp_path):
    out = tmp_path / "processes.json"
    run("bench_processes.py", str(out), *"--rounds 1 --rows 32 --model bert-2x64".split())
    table = json.loads(out.read_text())["contenders"]
    assert len(table) == 3
    for row in table.values():
        assert row["scaling"] == row["examples_per_s, 2"] / row["examples_per_s, 1"]


def test_every_method_is_compared_with_fine_tuning(tmp_path):
    out = tmp_path / "methods.json"
    run("bench_methods.py", str(out), "--methods", "mask_tuning", "--rounds", "1")
    result = json.loads(out.read_text())
    assert [*result["methods"]] == ["finetuning", "mask_tuning"] and result["batch"] == 16
    plain, masked = result["methods"].values()
    assert plain["step_time"] == plain["peak_memory"] == 1
    assert masked["step_time"] > 1 and masked["ms"] > 0  # two passes, next to plain fine-tuning
    assert masked["peak_bytes"] > plain["peak_bytes"] > 0
