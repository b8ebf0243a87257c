"""The commands end to end on a tiny checkpoint, and each thing a user can get wrong."""

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT
from families import config_of, save_tiny, tiny_tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    pipeline,
)

from masktuning import MaskTuningArguments, MaskTuningTrainer, evaluate, info, train
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.training.job import read_job
from masktuning.training.run_folder import config_text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, and CSV files whose label depends on the first word."""
    folder = tmp_path_factory.mktemp("files")
    save_tiny(folder / "model", "bert")
    for name, count in (("train", 48), ("dev", 20), ("far", 12)):
        rows = [
            f"w{7 * i % 80} w{i % 11} w{i % 13 + 20},{'ab'[7 * i % 80 % 2]}" for i in range(count)
        ]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return folder


def command(files, **options):
    """The argument list of a short run on those files."""
    settings = {
        "model_name_or_path": files / "model",
        "train_file": files / "train.csv",
        "validation_file": files / "dev.csv",
        "eval_files": f"far={files / 'far.csv'}",
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "logging_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "use_cpu": True,
        "disable_tqdm": True,
        **options,
    }
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", str(value)]
    return words


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "out"
    train.main(command(files, output_dir=out))
    return out


def test_a_run_folder_is_whole(finished, capsys):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "mlm_head",
        "config.yaml",
        "all_results.json",
        "trainer_state.json",
        "README.md",
        "perturbations.jsonl",
    }
    assert not [name for name in names if name.startswith(".")]
    results = json.loads((finished / "all_results.json").read_text())
    assert {"eval_dev_accuracy", "eval_far_accuracy", "train_loss"} <= results.keys()
    assert results["eval_far_samples"] == 12
    card = (finished / "README.md").read_text()
    assert f"{100 * results['eval_dev_accuracy']:.2f}" in card
    lines = (finished / "perturbations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 10 and {r["epoch"] for r in records} == {0}
    assert all(len(r["changes"]) <= 1 and r["label"] in "ab" for r in records)


def test_the_same_labels_everywhere(finished, files, tmp_path, capsys):
    """all_results.json, evaluate and a plain pipeline agree."""
    evaluate.main(
        [
            "--model_name_or_path",
            str(finished),
            "--eval_files",
            f"dev_set={files / 'dev.csv'}",
            "--output_dir",
            str(tmp_path),
        ]
    )
    results = json.loads((tmp_path / "results.json").read_text())
    table = capsys.readouterr().out
    trained = json.loads((finished / "all_results.json").read_text())
    assert results["eval_dev_set_accuracy"] == trained["eval_dev_accuracy"]
    assert "dev_set" in table and f"{100 * results['eval_dev_set_accuracy']:.2f}" in table
    lines = (tmp_path / "predictions_dev_set.jsonl").read_text().splitlines()
    ours = [json.loads(line)["prediction"] for line in lines]
    texts = [line.split(",")[0] for line in (files / "dev.csv").read_text().splitlines()[1:]]
    classify = pipeline("text-classification", str(finished), device="cpu")
    assert [answer["label"] for answer in classify(texts)] == ours


def test_the_folder_loads_without_masktuning(finished):
    code = (
        "import sys; sys.modules['masktuning'] = None; from transformers import pipeline; "
        f"print(pipeline('text-classification', {str(finished)!r}, device='cpu')('w1')[0]['label'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("a", "b")


def test_the_written_config_repeats_the_run(finished, tmp_path):
    train.main(["--config", str(finished / "config.yaml"), "--output_dir", str(tmp_path / "two")])
    first = yaml.safe_load((finished / "config.yaml").read_text())
    assert first["seed"] == 42
    second = yaml.safe_load((tmp_path / "two" / "config.yaml").read_text())
    assert {**first, "output_dir": ""} == {**second, "output_dir": ""}
    same = ("model.safetensors", "mlm_head/model.safetensors", "perturbations.jsonl")
    for name in same:
        assert (finished / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_resume_takes_the_last_whole_checkpoint(finished, files, tmp_path):
    """A run of 4 steps that stopped after 2, with a half-written checkpoint after the whole one."""
    out = tmp_path / "out"
    kept = command(files, output_dir=out, max_steps=2, keep_optimizer_states=True)
    train.main(kept)
    (out / "checkpoint-3").mkdir()
    (out / "checkpoint-3" / "trainer_state.json").write_text('{"global_step"')
    train.main([*command(files, output_dir=out), "--resume_from_checkpoint"])
    state = json.loads((out / "trainer_state.json").read_text())
    assert state["global_step"] == 4
    assert [log["step"] for log in state["log_history"] if "loss" in log] == [2, 4]
    with pytest.raises(UsageError, match="no complete checkpoint"):
        train.main(command(files, output_dir=out, resume_from_checkpoint=out / "checkpoint-3"))


def test_an_earlier_run_is_not_overwritten_by_chance(finished, files, tmp_path):
    with pytest.raises(UsageError, match="holds a run already"):
        train.main(command(files, output_dir=finished))
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    train.main(command(files, output_dir=out, max_steps=2, method="finetuning"))
    assert not (out / "mlm_head").exists() and not (out / "perturbations.jsonl").exists()
    train.main([*command(files, output_dir=out, max_steps=2, save_strategy="no"), "--overwrite"])
    assert not list(out.glob("checkpoint-*"))
    assert (out / "mlm_head").is_dir() and (out / "notes.txt").read_text() == "mine"


def test_nothing_of_the_users_is_overwritten(files, tmp_path):
    """Not even with --overwrite: files of these names that no run wrote, or a model folder."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("mine")
    for extra in ([], ["--overwrite"]):
        with pytest.raises(UsageError, match=r"holds README\.md, which no run of masktuning wrote"):
            train.main([*command(files, output_dir=out), *extra])
        with pytest.raises(UsageError, match=r"holds config\.json, which no run"):
            train.main([*command(files, output_dir=files / "model"), *extra])
    assert (out / "README.md").read_text() == "mine"


def test_a_failing_run_leaves_the_earlier_one(finished, files, tmp_path):
    before = {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}
    with pytest.raises(UsageError, match="no column 'body'"):
        train.main([*command(files, output_dir=finished, text_column_names="body"), "--overwrite"])
    assert before == {p.name: p.read_bytes() for p in finished.iterdir() if p.is_file()}


def test_resuming_a_complete_run_keeps_its_results(files, tmp_path, capsys):
    out = tmp_path / "out"
    train.main(command(files, output_dir=out, min_per_example=1))
    before = json.loads((out / "all_results.json").read_text())
    assert before["train_loss"] > 0 and before["train_grad_norm_mlm"] > 0
    train.main(["--config", str(out / "config.yaml"), "--resume_from_checkpoint"])
    assert "the run was complete" in capsys.readouterr().out
    assert json.loads((out / "all_results.json").read_text()) == before


def test_a_config_runs_from_anywhere(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    relative = command(files, output_dir=tmp_path / "out", max_steps=1)
    relative = [w.replace(f"{files}/", "") for w in relative]
    assert "train.csv" in relative
    train.main(relative)
    monkeypatch.chdir(tmp_path)
    train.main(["--config", "out/config.yaml", "--output_dir", "two"])


def test_a_small_say_of_the_classifier_is_told(files, tmp_path, capsys):
    short = {"max_steps": 2, "min_per_example": 1}
    train.main(command(files, output_dir=tmp_path / "a", alpha=0.99, **short))
    assert "A smaller --alpha may serve better" in capsys.readouterr().out
    train.main(command(files, output_dir=tmp_path / "b", alpha=0.0, **short))
    assert "A smaller --alpha" not in capsys.readouterr().out


@pytest.mark.parametrize("constant", [True, False])
def test_a_classifier_with_one_answer_is_named(files, tmp_path, monkeypatch, caplog, constant):
    logits = np.tile([[0.0, 1.0]], (20, 1))
    logits[0, 0] = 0.0 if constant else 2.0
    monkeypatch.setattr(MaskTuningTrainer, "dev_logits", lambda self: logits)
    train.main(command(files, output_dir=tmp_path / "out", max_steps=1))
    told = "the classifier gives all 20 texts of dev the label 'b'" in caplog.text
    assert told == constant


def test_an_encoder_is_not_a_classifier(files):
    with pytest.raises(UsageError, match=r"has no trained classifier \(no .*classifier\.weight"):
        evaluate.main(
            [
                "--model_name_or_path",
                str(files / "model"),
                "--eval_files",
                f"x={files / 'dev.csv'}",
            ]
        )


def test_resuming_with_another_method_is_refused(files, tmp_path):
    out = tmp_path / "out"
    train.main(command(files, output_dir=out, max_steps=2, method="finetuning"))
    with pytest.raises(UsageError, match="has no mlm_head/: its run had another method"):
        train.main([*command(files, output_dir=out), "--resume_from_checkpoint"])


def test_secrets_and_odd_values_in_the_written_config(files, tmp_path):
    out = tmp_path / "out"
    train.main(
        command(
            files,
            output_dir=out,
            max_steps=1,
            hub_token="hf_0123",
            accelerator_config='{"split_batches": false}',
            lr_scheduler_type="cosine",
        )
    )
    text = (out / "config.yaml").read_text()
    assert "hf_0123" not in text and "lr_scheduler_type: cosine" in text
    train.main(["--config", str(out / "config.yaml"), "--output_dir", str(tmp_path / "two")])


def test_evaluation_in_16_bits_leaves_the_model_in_32(files, tmp_path):
    train.main(command(files, output_dir=tmp_path / "out", max_steps=1, bf16_full_eval=True))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(w.dtype) for w in weights.values()} == {"torch.float32"}


def test_flags_with_dashes_are_the_same_flags(files, tmp_path):
    words = [w.replace("_", "-") if w.startswith("--") else w for w in command(files)]
    options = read_job([*words, "--output-dir", str(tmp_path)], EMBEDDED)
    assert options.task.name == "own data" and options.training.max_steps == 4


def test_the_environment_s_back_end_must_exist(files, tmp_path, monkeypatch):
    monkeypatch.setenv("MASKTUNING_BACKEND", "cuda")
    with pytest.raises(UsageError, match="'cuda' is not available here"):
        train.main(command(files, output_dir=tmp_path / "out"))
    with pytest.raises(UsageError, match="'cuda' is not available here"):
        info.main([])
    with pytest.raises(UsageError, match="takes no arguments"):
        info.main(["--foo"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train_file", "x.csv"], "takes no training data"),
        (["--max_eval_samples", "-3"], "max_eval_samples is -3"),
        (["--per_device_eval_batch_size", "0"], "must be 1 or more"),
        (["--text_column_names", "x", "--task", "sst2"], "go with --eval_files"),
        (["--sets", "dve", "--task", "demo"], "unknown set 'dve'; did you mean 'dev'"),
        ([], "no data"),
    ],
)
def test_evaluate_s_own_errors(finished, words, message):
    with pytest.raises(UsageError, match=message):
        evaluate.main(["--model_name_or_path", str(finished), *words])


PARTS = ("encoder", "head", "row_kernel", "optimizer", "data", "evaluation", "rest")


def lines_of_time(printed):
    """The table of times as {part: seconds}."""
    lines = printed[printed.index("time ") :].splitlines()[2:]
    rows = [re.fullmatch(r"(\w+( \w+)?) +([\d.]+) s +\d+ %", line) for line in lines]
    return {row[1].replace(" ", "_"): float(row[3]) for row in rows if row}


def test_a_run_says_where_its_time_went(files, tmp_path, capsys):
    began = time.perf_counter()
    train.main(command(files, output_dir=tmp_path, min_per_example=1))
    took = time.perf_counter() - began
    results = json.loads((tmp_path / "all_results.json").read_text())
    seconds = {part: results[f"train_seconds_{part}"] for part in PARTS}
    assert all(value > 0 for value in seconds.values())
    assert results["train_runtime"] <= sum(seconds.values()) <= took
    printed = lines_of_time(capsys.readouterr().out)
    wanted = {**seconds, "all": sum(seconds.values())}
    assert printed == pytest.approx(wanted, abs=0.051)


def test_dry_run_keeps_nothing(files, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main([*command(files, output_dir=tmp_path / "out"), "--dry_run"])
    printed = capsys.readouterr().out
    assert "48 examples, 4 steps of" in printed and "far: 12 examples" in printed
    times = lines_of_time(printed)
    assert {"encoder", "optimizer", "evaluation", "rest", "all"} <= times.keys()
    (minutes,) = re.findall(r"estimated total: ([\d.]+) minutes", printed)
    assert times["all"] / 60 == pytest.approx(float(minutes), abs=0.06)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_the_same_on_every_back_end(files, tmp_path):
    """The same masks and texts to the letter; losses but for rounding."""
    logs, texts = [], []
    for name in ("cpp", "reference"):
        out = tmp_path / name
        train.main(command(files, output_dir=out, backend=name, min_per_example=1))
        state = json.loads((out / "trainer_state.json").read_text())
        logs.append([log["loss"] for log in state["log_history"] if "loss" in log])
        texts.append((out / "perturbations.jsonl").read_text())
    assert texts[0] == texts[1] and " -> " in texts[0]
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_precedence_is_flags_file_task(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("task: demo\nalpha: 0.5\nlearning_rate: 3e-4\nnum_train_epochs: 2\n")
    options = read_job(["--config", str(path), "--alpha", "0.25", "--output_dir", "x"], EMBEDDED)
    assert options.training.alpha == 0.25  # the flag over the file
    assert options.training.learning_rate == 3e-4  # the file over the task
    assert options.training.per_device_train_batch_size == 32  # the task over the default
    assert options.training.weight_decay == 0.0


def test_a_preset_is_over_the_task_and_under_the_flags(tmp_path):
    words = ["--task", "sst2", "--model_name_or_path", "m", "--output_dir", "x"]
    by_default = read_job(words, EMBEDDED).training
    assert by_default.alpha == "auto" and by_default.per_device_train_batch_size == 16
    paper = read_job([*words, "--preset", "paper", "--mask_rate", "0.1"], EMBEDDED).training
    assert (paper.alpha, paper.mask_rate, paper.num_train_epochs) == (0.6, 0.1, 3)
    path = tmp_path / "c.yaml"
    path.write_text("preset: paper\n")
    assert read_job([*words, "--config", str(path)], EMBEDDED).training.alpha == 0.6
    for wrong, told in (
        ([*words, "--preset", "papper"], "unknown preset 'papper'; did you mean 'paper'"),
        (["--task", "demo", "--preset", "paper"], "the task demo has no presets"),
        (["--train_file", "a.csv", "--preset", "paper"], "files of your own have no presets"),
    ):
        with pytest.raises(UsageError, match=told):
            read_job(wrong, EMBEDDED)


@pytest.mark.parametrize("given", ["flag", "file", "task"])
def test_an_option_of_another_method_is_named_and_not_used(tmp_path, caplog, given):
    """A task's settings are for every method; what the user wrote is told if it has no effect."""
    path = tmp_path / "c.yaml"
    path.write_text("task: demo\n" + ("alpha: 0.5\n" if given == "file" else ""))
    words = ["--config", str(path), "--method", "finetuning", "--output_dir", "x"]
    words += ["--alpha", "0.25", "--seed", "7"] if given == "flag" else ["--seed", "7"]
    with caplog.at_level(logging.WARNING, "masktuning"):
        job = read_job(words, EMBEDDED)
    assert not hasattr(job.training, "alpha") and job.training.seed == 7
    told = "finetuning has no --alpha, an option of mask_tuning"
    assert (told in caplog.text) == (given != "task")


def test_a_task_may_name_its_method(tmp_path):
    text = (ROOT / "masktuning" / "tasks" / "demo.yaml").read_text()
    settings = "settings:\n  method: cutoff\n  cutoff_rate: 0.3\n"
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("settings:\n", settings))
    job = read_job(["--task", str(path)], EMBEDDED)
    assert job.training.method == "cutoff" and job.training.cutoff_rate == 0.3
    assert "cutoff" in str(job.folder)


@pytest.mark.parametrize("task", ["sst2", "mnli", "qqp"])
def test_the_preset_of_one_paper_leaves_another_paper_s_methods_their_mask_rate(task):
    words = ["--task", task, "--preset", "paper", "--model_name_or_path", "m", "--method"]
    rates = {"mask_tuning": 0.05, "l3masking": 0.15, "random_token_masking": 0.15}
    for method, rate in rates.items():
        assert read_job([*words, method], EMBEDDED).training.mask_rate == rate


def test_a_task_may_have_settings_for_one_method(tmp_path):
    """They go over a preset, and a flag over both."""
    text = (ROOT / "masktuning" / "tasks" / "demo-pairs.yaml").read_text()
    path = tmp_path / "mine.yaml"
    of_one = "methods: {cutoff: {seed: 7, learning_rate: 0.5}}\npresets: {paper: {seed: 8}}\n"
    path.write_text(text + of_one)
    for words, seed, rate in (
        (["--method", "finetuning"], 42, 1e-3),
        (["--method", "cutoff"], 7, 0.5),
        (["--method", "cutoff", "--preset", "paper"], 7, 0.5),
        (["--method", "finetuning", "--preset", "paper"], 8, 1e-3),
        (["--method", "cutoff", "--preset", "paper", "--seed", "9"], 9, 0.5),
    ):
        training = read_job(["--task", str(path), *words], EMBEDDED).training
        assert (training.seed, training.learning_rate) == (seed, rate)
    path.write_text(text + "methods: {cutof: {seed: 7}}\n")
    with pytest.raises(UsageError, match="unknown method in the task 'cutof'; did you mean"):
        read_job(["--task", str(path)], EMBEDDED)
    path.write_text(text + "methods: {cutoff: {sed: 7}}\n")
    with pytest.raises(UsageError, match=r"line \d+: unknown setting 'sed'"):
        read_job(["--task", str(path), "--method", "cutoff"], EMBEDDED)


def test_options_of_a_method_reach_it_and_its_config(tmp_path):
    job = read_job(
        ["--method", "cutoff", "--cutoff_rate", "0.3", "--output_dir", str(tmp_path)], EMBEDDED
    )
    assert job.training.cutoff_rate == 0.3 and job.training.consistency_weight == 1.0
    path = tmp_path / "config.yaml"
    path.write_text(config_text(job))
    again = read_job(["--config", str(path)], EMBEDDED)
    assert again.training.method == "cutoff" and again.training.cutoff_rate == 0.3


def test_info_says_what_each_op_uses(capsys):
    info.main([])
    printed = capsys.readouterr().out
    assert re.search(r"sample_masks +cpu +cpp\n", printed)
    assert "cuda        torch sees no CUDA device" in printed


@pytest.fixture(scope="module")
def other_models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    config = GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    tiny_tokenizer().save_pretrained(folder / "gpt2")
    save_tiny(folder / "maskless", "bert")
    plain = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, unk_token="<unk>", pad_token="<pad>"
    )
    plain.save_pretrained(folder / "maskless")
    config = config_of("bert", num_labels=3)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder / "three")
    tiny_tokenizer().save_pretrained(folder / "three")
    save_tiny(folder / "broken", "bert")
    weights = folder / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


BAD = [
    ({"alhpa": 0.3}, "unknown flag 'alhpa'; did you mean 'alpha'"),
    ({"learning_rat": 0.3}, "did you mean 'learning_rate'"),
    ({"train_file": "nowhere.csv"}, "nowhere.csv: no such file"),
    ({"validation_file": "nowhere.csv"}, "nowhere.csv: no such file"),
    ({"validation_file": None}, "--validation_file is missing"),
    ({"train_file": None}, "--train_file is missing: --validation_file goes with it"),
    ({"train_file": None, "validation_file": None}, "--train_file or --task is missing"),
    ({"max_train_samples": 0}, "max_train_samples is 0"),
    ({"max_seq_length": -5}, "max_seq_length is -5"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
    ({"learning_rate": -1}, "learning_rate is -1.0"),
    ({"label_smoothing_factor": 1.5}, "label_smoothing_factor is 1.5"),
    ({"report_to": "wandb"}, "(?i)wandb"),
    ({"model_name_or_path": "three"}, "its classifier is not one of 2 labels"),
    ({"model_name_or_path": "broken"}, "broken: "),
    ({"text_column_names": "body"}, "no column 'body'; it has 'text', 'label'"),
    ({"label_column_name": "gold"}, "no column 'gold'"),
    ({"alpha": 1.2}, "alpha is 1.2"),
    ({"alpha": "much"}, "--alpha: give a number or auto, not 'much'"),
    ({"mask_rate": 0}, "mask_rate is 0.0"),
    ({"min_per_example": -1}, "min_per_example is -1"),
    ({"top_k": 65}, "top_k is 65"),
    ({"temperature": 0}, "temperature is 0.0"),
    ({"method": "masktuning"}, "invalid choice: 'masktuning'"),
    ({"backend": "cuda"}, "back end 'cuda' is not available here: torch sees no CUDA device"),
    ({"model_name_or_path": None}, "--model_name_or_path is missing"),
    ({"model_name_or_path": "no/such-model"}, "no/such-model"),
    ({"model_name_or_path": "/no/such/model"}, "/no/such/model: no such folder"),
    ({"task": "sst2"}, "--task, --train_file and --dataset_name exclude each other"),
    ({"config": "nowhere.yaml"}, "nowhere.yaml: no such file"),
    ({"model_name_or_path": "gpt2"}, "gpt2 has no masked-LM class"),
    ({"model_name_or_path": "maskless"}, "tokenizer has no mask token"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[next(iter(c)) for c, _ in BAD])
def test_bad_input_is_one_sentence_and_writes_nothing(
    files, other_models, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    name = change.get("model_name_or_path")
    if name in ("gpt2", "maskless", "three", "broken"):
        change = {"model_name_or_path": other_models / name}
    with pytest.raises(UsageError, match=message) as caught:
        train.main(command(files, **{"output_dir": tmp_path / "out", **change}))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alhpa: 0.3\n", "unknown option 'alhpa'; did you mean 'alpha'"),
        ("alpha: high\n", "give a number or auto, not 'high'"),
        ("alpha: [1, 2]\n", r"alpha: takes one value, not the list \[1, 2\]"),
        ("1: 2\n", "unknown option 1"),
        ("help: true\n", "unknown option 'help'"),
        ("resume_from_checkpoint: true\n", "no complete checkpoint to resume from"),
        ("method: masktuning\n", "method: 'masktuning' is none of mask_tuning, finetuning"),
        ("alpha: [\n", "not valid YAML"),
        ("- alpha\n", "must be a mapping"),
    ],
)
def test_bad_configuration_files(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        train.main(["--config", str(path), "--output_dir", str(tmp_path / "out")])


def test_labels_of_another_task_show_both_lists(finished, tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "dev.tsv").write_text("sentence\tlabel\nw1\t1\n")
    with pytest.raises(UsageError, match="labels are a, b, the task's negative, positive"):
        evaluate.main(
            ["--model_name_or_path", str(finished), "--task", "sst2", "--data_dir", str(tmp_path)]
        )


def test_an_unknown_label_in_a_set(finished, tmp_path):
    (tmp_path / "x.csv").write_text("text,label\nw1,a\nw2,c\n")
    with pytest.raises(UsageError, match=r"x\.csv, line 3: label 'c' is none of a, b"):
        evaluate.main(
            ["--model_name_or_path", str(finished), "--eval_files", f"x={tmp_path / 'x.csv'}"]
        )


@pytest.mark.parametrize("module", ["train", "evaluate"])
def test_usage_errors_exit_with_2_and_no_traceback(module, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"masktuning.{module}", "--tusk", "demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr == "error: unknown flag 'tusk'; did you mean 'task'?\n"


def test_help_needs_no_torch():
    """Two seconds are the bar; torch alone takes one, so it must not be imported."""
    code = (
        "import sys; from masktuning import train; train.main(['--help']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--method" in done.stdout and "python -m masktuning.train --task sst2" in done.stdout


def test_flags_named_in_the_help_exist():
    fields = MaskTuningArguments.__dataclass_fields__
    named = [w.removeprefix("--") for w in train.EPILOG.split() if w.startswith("--")]
    assert len(named) > 15
    ours = {"task", "train_file", "config", "method", "help"}
    assert not [name for name in named if name not in fields and name not in ours]


def test_paths_in_errors_are_the_users_own(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    Path("broken.csv").write_text('text,label\n"w1,a\n')
    with pytest.raises(UsageError, match="broken quoting"):
        train.main(command(files, train_file="broken.csv", output_dir=tmp_path / "out"))


def test_hiddencut_and_a_compiled_model_are_refused_before_anything_is_loaded():
    words = ["--method", "hiddencut", "--torch_compile", "true", "--output_dir", "x"]
    with pytest.raises(UsageError, match="--torch_compile does not go with hiddencut"):
        read_job(words, EMBEDDED)


def test_the_training_file_is_no_validation_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\nw1,a\nw2,b\n")
    words = ["--train_file", str(path), "--validation_file", f"{tmp_path}/./a.csv"]
    with pytest.raises(UsageError, match="are the same file"):
        read_job([*words, "--model_name_or_path", "x", "--output_dir", "x"], EMBEDDED)
