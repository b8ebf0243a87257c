"""Flags of run_glue.py and of earlier Trainers: accepted, translated, or answered in one line."""

import json
import re
import sys

import pytest
from conftest import ROOT

from masktuning import evaluate, train
from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments, ModelArguments, RunArguments
from masktuning.config.parser import build_parser, known_names, run_command
from masktuning.config.run_glue import ALWAYS_TRUE, REFUSED
from masktuning.demo import EMBEDDED
from masktuning.training.arguments import MaskTuningArguments
from masktuning.training.job import read_job

PAGE = (ROOT / "docs" / "run_glue.md").read_text()
ROWS = {
    flag: (status, note)
    for flag, status, note in re.findall(r"^\| `--(\w+)` \| ([\w ]+) \| (.*)\|$", PAGE, re.M)
}
# The fields of run_glue.py's ModelArguments and DataTrainingArguments.
OF_RUN_GLUE = """
model_name_or_path config_name tokenizer_name cache_dir use_fast_tokenizer model_revision token
use_auth_token trust_remote_code ignore_mismatched_sizes
task_name dataset_name dataset_config_name max_seq_length overwrite_cache pad_to_max_length
max_train_samples max_eval_samples max_predict_samples train_file validation_file test_file
"""


def job(*words):
    return read_job([*words, "--output_dir", "x"], EMBEDDED)


def with_status(*statuses):
    return [flag for flag, (status, _) in ROWS.items() if status in statuses]


@pytest.fixture(scope="module")
def known():
    groups = [ModelArguments, DataArguments, MaskTuningArguments, RunArguments]
    return known_names(build_parser(None, "", groups))


def test_the_page_has_every_flag_of_run_glue_and_of_ours(known):
    assert set(OF_RUN_GLUE.split()) | REFUSED.keys() | ALWAYS_TRUE.keys() <= ROWS.keys()
    statuses = {status for status, _ in ROWS.values()}
    assert statuses == {"same", "other name", "not needed", "refused"}
    assert len(re.findall(r"^\| `--", PAGE, re.M)) == len(ROWS), "a row twice, or one not read"


def test_same_flags_are_accepted(known):
    assert len(with_status("same")) > 40
    assert set(with_status("same")) <= known
    for flag in with_status("other name", "refused"):
        named = re.findall(r"--(\w+)", ROWS[flag][1])
        assert set(named) <= {*known, "token"}, flag
    assert all("--" in ROWS[flag][1] for flag in with_status("other name"))


@pytest.mark.parametrize("flag", with_status("refused"))
def test_refused_flags_have_one_line_and_exit_code_2(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", f"--{flag}", "true"])
    with pytest.raises(SystemExit) as caught:
        run_command(train.main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --{flag} ") and len(line) > 40


@pytest.mark.parametrize("flag", with_status("not needed"))
def test_what_is_not_needed_is_accepted(flag):
    for words in ([f"--{flag}"], [f"--{flag}", "True"], [f"--{flag}=true"]):
        assert job(*words).task.name == "demo"


@pytest.mark.parametrize("flag", sorted(ALWAYS_TRUE))
def test_what_is_always_so_cannot_be_turned_off(flag, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{flag}: false\n")
    for words in ([f"--{flag}", "False"], [f"--no_{flag}"], ["--config", str(path)]):
        with pytest.raises(UsageError, match=f"--{flag} cannot be false: "):
            job(*words)
    with pytest.raises(UsageError, match=f"--{flag}: 'maybe' is neither true nor false"):
        job(f"--{flag}", "maybe")


def test_a_file_of_options_gets_the_same_answers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("cache_dir: here\n")
    with pytest.raises(UsageError, match=r"--cache_dir is not a flag here: .* HF_HOME"):
        job("--config", str(path))
    with pytest.raises(UsageError, match=r"give a file of options as --config args\.json"):
        job("args.json")


def test_a_json_file_of_run_glue_is_a_file_of_options(tmp_path):
    """Also with its names of options that have others here."""
    file = tmp_path / "glue.json"
    content = {"task_name": "SST2", "model_name_or_path": "x", "overwrite_output_dir": True}
    file.write_text(json.dumps(content))
    read = job("--config", str(file))
    assert (read.task.name, read.run.overwrite, read.model.model_name_or_path) == (
        "sst2",
        True,
        "x",
    )
    for wrong, message in [
        ({"task": "sst2", "task_name": "qqp"}, "task_name and task are the same option"),
        ({"no_dataloader_pin_memory": True}, "as an option, give dataloader_pin_memory: false"),
    ]:
        file.write_text(json.dumps({**wrong, "model_name_or_path": "x"}))
        with pytest.raises(UsageError, match=message):
            job("--config", str(file))


def test_the_case_of_a_task_s_name_does_not_matter():
    assert job("--task_name", "SST2", "--model_name_or_path", "m").task.name == "sst2"


def test_evaluate_answers_too():
    words = ["--model_name_or_path", "m", "--eval_files", "x=x.csv"]
    with pytest.raises(UsageError, match=r"--no_cuda is not a flag here: .* --use_cpu"):
        evaluate.main([*words, "--no_cuda"])
    with pytest.raises(UsageError, match="--use_fast_tokenizer cannot be false"):
        evaluate.main([*words, "--no_use_fast_tokenizer"])


def test_the_warmup_ratio_is_a_share_of_the_steps(tmp_path):
    """A flag goes over the file, which goes over the task; both names together are an error."""
    given = job("--warmup_ratio", "0.25").training
    assert given.warmup_steps == 0.25 and given.get_warmup_steps(40) == 10
    path = tmp_path / "c.yaml"
    path.write_text("warmup_ratio: 0.1\n")
    assert job("--config", str(path)).training.warmup_steps == 0.1
    assert job("--config", str(path), "--warmup_steps", "7").training.warmup_steps == 7
    assert job("--config", str(path), "--warmup_ratio=0").training.warmup_steps == 0
    imdb = ["--task", "imdb", "--model_name_or_path", "m", "--warmup_ratio", "0.5"]
    assert job(*imdb).training.warmup_steps == 0.5
    with pytest.raises(UsageError, match="--warmup_ratio and --warmup_steps exclude each other"):
        job("--warmup_ratio", "0.1", "--warmup_steps", "7")
    for wrong in ("1", "-0.1", "much"):
        with pytest.raises(UsageError, match=f"--warmup_ratio is {wrong}: give 0 or more, below 1"):
            job("--warmup_ratio", wrong)


def test_eval_steps_without_its_strategy_is_told(caplog):
    job("--eval_steps", "5", "--eval_strategy", "steps")
    assert "--eval_steps" not in caplog.text
    job("--eval_steps", "5")
    assert "--eval_steps has an effect only with --eval_strategy steps" in caplog.text


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    words = ["--push_to_hub", "--method", "finetuning", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UsageError, match="offline mode is enabled") as caught:
        train.main([*words, "--max_steps", "1", "--max_train_samples", "8"])
    assert "\n" not in str(caught.value)
