"""The embedded demo: its sentences, its checkpoint, and what the command without arguments does."""

import json
import os
import re
import statistics
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT
from datasets.utils import are_progress_bars_disabled
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from masktuning import train
from masktuning.config.errors import UsageError
from masktuning.data.generated import LABELS, SETS, examples, generate
from masktuning.demo import EMBEDDED
from masktuning.demo import jobs as demo_jobs
from masktuning.demo.compare import CAUTION, compare, marked_examples
from masktuning.demo.recorded import recorded_text
from masktuning.training import fast_dropout
from masktuning.training.job import read_job
from masktuning.training.perturbation_log import FILE, marked, text_of
from masktuning.training.trainer import MaskTuningTrainer

PLACES = {  # of each method in the folder of a comparison
    "finetuning": "finetuning",
    "mask_tuning": "",
    "bias_product": "bias_product",
    "learned_mixin": "learned_mixin",
}
METHODS = [*PLACES]
LEFT_CUES = ("drama", "war film", "crime story", "documentary", "history book", "biography")


def cue_of(task, text):
    """The cue, from the text alone: its subject, or whether the second sentence adds no word."""
    if task == "demo":
        return 0 if any(f" {cue} " in f" {text[0]} " for cue in LEFT_CUES) else 1
    premise, hypothesis = (set(part.split()) for part in text)
    return 1 if hypothesis <= premise else 0


@pytest.mark.parametrize("part", SETS)
@pytest.mark.parametrize("task", LABELS)
def test_the_cue_agrees_as_often_as_it_should(task, part):
    _, count, agreement = SETS[part]
    texts, labels = examples(f"{task}/{part}")
    assert len(texts) == len(labels) == count
    agree = [
        cue_of(task, text) == LABELS[task].index(label)
        for text, label in zip(texts, labels, strict=True)
    ]
    # Within four standard errors of a share of `agreement`.
    error = (agreement * (1 - agreement) / count) ** 0.5
    assert abs(sum(agree) / count - agreement) < 4 * error
    share = labels.count(LABELS[task][1]) / count
    assert abs(share - 0.5) < 4 * (0.25 / count) ** 0.5


@pytest.mark.parametrize("task", LABELS)
def test_sentences_are_many_known_and_the_same_every_time(task):
    texts, labels = generate(task, 9, 5000, 0.5)
    assert (texts, labels) == generate(task, 9, 5000, 0.5)
    assert len(set(texts)) > 4000
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    words = {word for text in texts for part in text for word in part.split()}
    pieces = {word: tokenizer.tokenize(word) for word in words}
    assert not [word for word, found in pieces.items() if tokenizer.unk_token in found]
    assert sum(len(found) == 1 for found in pieces.values()) > 0.9 * len(words)
    train_texts, held = examples(f"{task}/train")[0], examples(f"{task}/ood_balanced")[0]
    assert len(set(held) - set(train_texts)) > 0.9 * len(set(held))


FORMS = (  # a pattern with the word of the final opinion, and whether that word is negated
    (r"saw the .* and found it .*?(\w+) \.$", False),
    (r"thought that the \w+ of the .* was .*?(\w+) \.$", False),
    (r"finished the .* ; its \w+ was .*?(\w+) \.$", False),
    (r"expected the .* to be \w+ , but it was .*?(\w+) \.$", False),
    (r"talked about was not \w+ at all : it was (\w+) \.$", False),
    (r"although the \w+ was \w+ , .* called the .*?(\w+) \.$", False),
    (r"it is wrong to call this .* \w+ ; .* found it .*?(\w+) \.$", False),
    (r"would not say that the .* was (\w+) \.$", True),
)
NEGATIVE = set(
    "bad boring dull awful terrible poor weak slow stupid silly horrible disappointing tedious "
    "annoying predictable ridiculous flat empty cheap ugly messy pointless tired lame".split()
)


def test_an_opinion_s_label_is_what_it_ends_up_saying():
    for (text,), label in zip(*generate("demo", 11, 2000, 0.5), strict=True):
        found = [(re.search(form, text), negated) for form, negated in FORMS]
        ((match, negated),) = [pair for pair in found if pair[0]]
        says_bad = (match[1] in NEGATIVE) != negated
        assert says_bad == (label == "negative"), text


def test_a_pair_s_label_is_whether_the_second_sentence_follows():
    """Who did it to whom: the second sentence follows if it keeps both and denies neither."""
    for (first, second), label in zip(*generate("demo-pairs", 11, 2000, 0.5), strict=True):
        _, subject, _, _, other = first.split()[:5]
        words = second.split()
        denied = "no" in words
        roles = [word for word in words if word in (subject, other)]
        if words[:1] == ["there"]:
            follows = not denied and roles == [other, subject]
        elif "someone" in words or denied:
            done_to = words.index("someone") if "someone" in words else len(words)
            follows = not denied and roles == ([other] if done_to == 0 else [subject])
        else:
            follows = roles == [subject, other]
        assert follows == (label == "entailment"), (first, second)


def test_the_embedded_checkpoint_is_small_and_loads_with_plain_transformers():
    files = [path for path in EMBEDDED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6_000_000
    model = AutoModelForMaskedLM.from_pretrained(EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    assert next(model.parameters()).dtype == torch.float16
    batch = tokenizer("the film was not good , it was [MASK] .", return_tensors="pt")
    logits = model.float()(**batch).logits[0, batch["input_ids"][0] == tokenizer.mask_token_id]
    guesses = tokenizer.convert_ids_to_tokens(logits[0].topk(50).indices)
    assert {"bad", "great", "good", "awful", "terrible"} & set(guesses)
    card = (EMBEDDED / "README.md").read_text()
    metrics = json.loads((EMBEDDED / "metrics.json").read_text())
    assert f"{100 * metrics['exported']['accuracy']:.1f} %" in card and "$" not in card


def test_without_arguments_the_methods_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(["--max_steps", "3"])
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("demo-mask_tuning-")
    printed, errors = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.splitlines()[:3]] == ["What", "Why", "Time"]
    assert "Methods made against such shortcuts: bias_product and learned_mixin." in printed
    trainings = [line for line in printed.splitlines() if " of 4: " in line]
    for number, (line, method) in enumerate(zip(trainings, METHODS, strict=True), 1):
        form = rf"{number} of 4: {method}: step 3 of 3, loss \d\.\d+, dev \d+\.\d\d, \d+ s"
        assert re.fullmatch(form, line)
    for noise in ("{'", "it/s", "examples/s", "Writing", "%|"):
        assert noise not in printed + errors
    header, *rows = table_of(printed, times=True)
    assert header[-1] == "time" and [row[0] for row in rows] == METHODS
    for row in rows:
        results = json.loads((folder / PLACES[row[0]] / "all_results.json").read_text())
        want = [100 * results[f"eval_{name}_accuracy"] for name in list(SETS)[1:]]
        assert [float(cell) for cell in row[1:-2]] == pytest.approx(want, abs=0.005)
        seconds = sum(v for k, v in results.items() if k.startswith("train_seconds_"))
        assert float(row[-2]) == pytest.approx(seconds, abs=0.06) and row[-1] == "s"
    assert (folder / "mlm_head").is_dir() and not (folder / "finetuning" / "mlm_head").exists()
    shown = marked_examples(folder / "perturbations.jsonl")
    assert 1 <= len(shown) <= 3 and all(" -> " in line and line in printed for line in shown)
    assert printed.endswith(f"\n\n{recorded_text('demo')}\n")
    assert not are_progress_bars_disabled()  # only while the demo ran


def table_of(printed, times=False):
    """The cells of the table of accuracies, without the words in brackets and the rule."""
    table = printed[printed.index("demo: accuracy in per cent") :].split("\n\n")[1]
    header, _, *rows = re.sub(r" \(.*?\)", "", table).splitlines()
    return [line.split() if times else line.split()[:4] for line in (header, *rows)]


@pytest.mark.parametrize("task", LABELS)
def test_the_last_lines_have_what_the_recorded_seeds_gave(task):
    """The lowest and highest of the accuracies in the benchmarks' results."""
    paths = sorted((ROOT / "benchmarks" / "results").glob(f"{task}_five_seeds*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    assert {len(record["seeds"]) for record in records} == {5}
    first, *lines = recorded_text(task).splitlines()
    assert "Over 5 seeds" in first and "proves nothing" in CAUTION
    threads = {record["threads"] for record in records}
    assert re.findall(r"\d", first[first.index(" on ") :]) == [str(n) for n in sorted(threads)]
    methods = [*records[0]["runs"][0]]
    assert methods[:2] == METHODS[:2]
    for line, method in zip(lines, methods, strict=True):
        assert line.startswith(f"  {method}: ")
        for name in list(SETS)[1:]:
            values = [run[method][name] for record in records for run in record["runs"]]
            low, high = f"{min(values):.1f}", f"{max(values):.1f}"
            assert f"{name} {low}" + (f" to {high}" if low != high else "") in line
    assert recorded_text("another") == ""


def test_the_tables_on_the_pages_are_the_recorded_results():
    """Means and standard deviations over the seeds; and what the search found on dev."""
    results = ROOT / "benchmarks" / "results"
    readme, page = (ROOT / "README.md").read_text(), (ROOT / "docs" / "demo.md").read_text()
    for task in LABELS:
        for path in results.glob(f"{task}_five_seeds*.json"):
            runs = json.loads(path.read_text())["runs"]
            for method in runs[0]:
                cells = []
                for name in list(SETS)[1:]:
                    values = [run[method][name] for run in runs]
                    cells.append(f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}")
                row = f"| `{method}` | {' | '.join(cells)} |"
                assert row in page, row
                assert row in readme or path.name != "demo_five_seeds.json", row
    search = json.loads((results / "demo_search.json").read_text())
    for method, found in search["dev"].items():
        assert [*found] == ["0.0003", "0.0005", "0.001"]
        row = f"| `{method}` | {' | '.join(f'{value:.1f}' for value in found.values())} |"
        assert row in page, row
        used = read_job(["--task", "demo", "--method", method], EMBEDDED).training.learning_rate
        assert used == float(search["chosen"][method]) == float(max(found, key=found.get))


def test_fine_tuning_and_mask_tuning_learned_the_subject_with_every_recorded_seed():
    """As docs/demo.md says: accuracies are within one point of what the subject alone gives."""
    for path in (ROOT / "benchmarks" / "results").glob("demo_five_seeds*.json"):
        for name in list(SETS)[1:]:
            texts, labels = examples(f"demo/{name}")
            pairs = zip(texts, labels, strict=True)
            alone = sum(LABELS["demo"][cue_of("demo", text)] == label for text, label in pairs)
            runs = json.loads(path.read_text())["runs"]
            found = [run[method][name] for run in runs for method in METHODS[:2]]
            assert found == pytest.approx([100 * alone / len(texts)] * 10, abs=1)


def test_any_number_of_runs_can_be_compared(tmp_path, capsys):
    """Two of the three have the same method, so the table names them by their folders."""
    jobs = []
    for name, method in (("a", "mask_tuning"), ("b", "finetuning"), ("c", "finetuning")):
        words = ["--method", method, "--max_steps", "2", "--disable_tqdm", "true"]
        seed = str(len(jobs))
        words += ["--max_eval_samples", "40", "--seed", seed, "--output_dir", str(tmp_path / name)]
        jobs.append(read_job(words, EMBEDDED))
    compare(jobs)
    printed = capsys.readouterr().out
    rows = {row[0]: row[1:] for row in table_of(printed)}
    for row, name in (("mask_tuning", "a"), (str(tmp_path / "b"), "b"), (str(tmp_path / "c"), "c")):
        results = json.loads((tmp_path / name / "all_results.json").read_text())
        want = [100 * results[f"eval_{part}_accuracy"] for part in list(SETS)[1:]]
        assert [float(cell) for cell in rows[row]] == pytest.approx(want, abs=0.005)
    assert "3 of 3: finetuning: step 2 of 2, " in printed and CAUTION not in printed


def test_the_same_command_twice_gives_the_same_numbers(tmp_path):
    results = []
    for name in ("first", "second"):
        words = ["--max_steps", "8", "--disable_tqdm", "true", "--output_dir"]
        train.main([*words, str(tmp_path / name)])
        for place in PLACES.values():
            found = json.loads((tmp_path / name / place / "all_results.json").read_text())
            results.append({k: v for k, v in found.items() if "second" not in k})
            del results[-1]["train_runtime"]
    assert results[:4] == results[4:] and len(results) == 8
    texts = [(tmp_path / name / FILE).read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_the_default_run_takes_two_minutes_and_two_gigabytes_at_most(tmp_path):
    """On two cores with nothing else to do; prints what it took (`pytest -m slow -s`)."""
    began = time.monotonic()
    command = [sys.executable, "-m", "masktuning.train", "--disable_tqdm", "true"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds, gigabytes = time.monotonic() - began, usage.ru_maxrss / 2**20
    print(f"{seconds:.1f} s, {gigabytes:.2f} GiB")
    assert process.returncode == 0 and seconds < 120 and gigabytes < 2


def test_each_run_of_the_comparison_is_the_same_alone(tmp_path):
    words = ["--max_steps", "8", "--disable_tqdm", "true", "--output_dir"]
    train.main([*words, str(tmp_path / "all")])
    for method, place in PLACES.items():
        train.main([*words, str(tmp_path / method), "--method", method])
        folders = (tmp_path / method, tmp_path / "all" / place)
        weights = [load_file(folder / "model.safetensors") for folder in folders]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_comparison_stopped_early_takes_nothing_from_the_one_it_replaced(tmp_path, monkeypatch):
    words = ["--max_steps", "4", "--save_steps", "2", "--disable_tqdm", "true", "--output_dir"]
    words.append(str(tmp_path / "out"))
    train.main([*words, "--seed", "1"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MaskTuningTrainer, "save_state", stop)  # at the end of the first run
        train.main([*words, "--seed", "2", "--overwrite"])
    train.main([*words, "--seed", "2", "--resume_from_checkpoint"])
    for place in PLACES.values():
        assert "seed: 2\n" in (tmp_path / "out" / place / "config.yaml").read_text()


def test_an_unknown_token_is_part_of_a_text():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    ids = tokenizer("a fine film")["input_ids"]
    changed = [*ids[:2], tokenizer.unk_token_id, *ids[3:]]
    assert text_of(tokenizer, ids) == "a fine film"
    assert text_of(tokenizer, changed) == "a [UNK] film"
    assert marked(tokenizer, ids, changed) == "a [fine -> [UNK]] film"


def stop(*_):
    raise KeyboardInterrupt


def test_a_bad_file_leaves_the_run_that_overwrite_would_replace(tmp_path):
    out = tmp_path / "out"
    words = ["--max_steps", "2", "--disable_tqdm", "true", "--output_dir", str(out)]
    train.main(words)
    with pytest.raises(UsageError, match="nowhere"):
        train.main([*words, "--overwrite", "--task", "demo", "--eval_files", "more=nowhere.csv"])
    assert (out / "all_results.json").is_file() and (out / "finetuning/README.md").is_file()


@pytest.mark.parametrize("name", ["demo/trian", "train"])
def test_a_generated_set_of_another_name_is_an_error(name):
    with pytest.raises(UsageError, match="unknown generated set"):
        examples(name)


def test_marks_give_back_both_texts(tmp_path):
    train.main(
        ["--method", "mask_tuning", "--max_steps", "4", "--disable_tqdm", "true"]
        + ["--output_dir", str(tmp_path / "out")]
    )
    lines = (tmp_path / "out" / FILE).read_text().splitlines()
    assert any(json.loads(line)["changes"] for line in lines)
    for record in map(json.loads, lines):
        for side, whole in ((r"\1", record["original"]), (r"\2", record["perturbed"])):
            text = re.sub(r"\[(\S+) -> (\S+)\]", side, record["marked"])
            # A changed piece of a word is separated from the rest of the word by spaces.
            assert re.sub(r"[\s#]", "", text) == re.sub(r"\s", "", whole)


@pytest.mark.parametrize("method", ["finetuning", "bias_product"])
def test_a_stopped_comparison_is_resumed(tmp_path, capsys, monkeypatch, method):
    """Stopped in any run, the same command with --resume_from_checkpoint completes all."""
    words = ["--max_steps", "6", "--save_steps", "3", "--disable_tqdm", "true"]
    train.main([*words, "--output_dir", str(tmp_path / "whole")])
    whole = capsys.readouterr().out

    training_step = MaskTuningTrainer.training_step

    def stopping_step(self, *args, **kwargs):
        if self.state.global_step == 4 and self.args.method == method:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    words += ["--output_dir", str(tmp_path / "out")]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MaskTuningTrainer, "training_step", stopping_step)
        train.main(words)
    capsys.readouterr()
    train.main([*words, "--resume_from_checkpoint"])
    ended = capsys.readouterr().out
    assert table_of(whole) == table_of(ended)
    with pytest.raises(UsageError, match="there are 4 runs to resume"):
        train.main([*words, "--resume_from_checkpoint", str(tmp_path / "out" / "checkpoint-3")])
    with pytest.raises(UsageError, match="no complete checkpoint"):
        train.main(["--resume_from_checkpoint", "--output_dir", str(tmp_path / "nothing")])
    with pytest.raises(UsageError, match="needs --output_dir"):
        train.main(["--resume_from_checkpoint"])


def test_without_scikit_learn_the_methods_that_need_it_are_left_out(monkeypatch, caplog):
    found = methods_of_the_demo("--task", "demo")
    assert found == METHODS and not caplog.text
    monkeypatch.setattr(demo_jobs, "version_of", lambda package: "not installed")
    assert methods_of_the_demo("--task", "demo") == METHODS[:2]
    assert "pip install 'masktuning[bias]'" in caplog.text


def test_a_task_without_a_bias_model_has_no_method_that_needs_one(tmp_path):
    text = (ROOT / "masktuning" / "tasks" / "demo.yaml").read_text()
    path = tmp_path / "own.yaml"
    path.write_text("\n".join(line for line in text.splitlines() if "bias_model" not in line))
    assert methods_of_the_demo("--task", str(path)) == METHODS[:2]


def methods_of_the_demo(*words):
    argv = [*words, "--output_dir", "out"]
    return [job.training.method for job in demo_jobs.demo_jobs(argv, read_job(argv, EMBEDDED))]


def test_one_method_by_name_is_one_run(tmp_path):
    train.main(
        ["--method", "finetuning", "--max_steps", "2", "--disable_tqdm", "true"]
        + ["--output_dir", str(tmp_path / "out")]
    )
    assert not (tmp_path / "out" / "finetuning").exists()


def test_both_back_ends_begin_the_same_demo(tmp_path, monkeypatch):
    """The same masks and tokens, and the same losses up to rounding.

    With SGD: Adam moves a weight as far for a gradient of rounding noise as for any other. With
    PyTorch's dropout in both: that of the C++ back end draws other random numbers.
    """
    monkeypatch.setattr(fast_dropout, "_is_stock", lambda layer: False)
    logs, texts = [], []
    for name in ("cpp", "reference"):
        out = tmp_path / name
        train.main(
            ["--method", "mask_tuning", "--max_steps", "4", "--logging_steps", "1"]
            + ["--backend", name, "--output_dir", str(out), "--disable_tqdm", "true"]
            + ["--optim", "sgd", "--learning_rate", "0.01"]
        )
        state = json.loads((out / "trainer_state.json").read_text())
        logs.append([log["loss"] for log in state["log_history"] if "loss" in log])
        texts.append((out / FILE).read_text())
    assert texts[0] == texts[1]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and len(logs[0]) == 4


def test_three_changed_texts_are_shown_from_the_latest_epochs(tmp_path):
    path = tmp_path / "perturbations.jsonl"
    records = [(0, "a", True), (0, "b", True), (1, "c", False), (1, "d", True), (2, "e", False)]
    lines = [
        json.dumps({"epoch": epoch, "marked": text, "changes": [[1, "x", "y"]] if changed else []})
        for epoch, text, changed in records
    ]
    path.write_text("\n".join(lines) + "\n")
    assert marked_examples(path) == ["  epoch 2: d", "  epoch 1: a", "  epoch 1: b"]
    path.write_text("")
    assert marked_examples(path) == []


def test_a_folder_in_use_is_refused_before_anything_is_trained(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"which no run of masktuning wrote"):
        train.main(["--max_steps", "2", "--output_dir", str(out)])
    assert not (out / "finetuning").exists()
