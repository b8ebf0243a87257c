"""The command compare: what it refuses, and a small comparison from the flags to the tables."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading

import pytest
from stand_in import wait_for

from masktuning import compare
from masktuning.config.errors import UsageError
from masktuning.demo import EMBEDDED
from masktuning.experiments.cell import collected_warnings, is_measured_again, read_outcome
from masktuning.experiments.identity import identity_of
from masktuning.experiments.plan import FINAL, SEARCH, Cell, Variant
from masktuning.experiments.request import ComparisonRequest
from masktuning.experiments.run_cell import CellRunner, folder_name
from masktuning.experiments.study import CellFailed, Stopped
from masktuning.tasks.spec import SetSpec
from masktuning.training.build import read_texts
from masktuning.training.job import read_job

SMALL = ["--task", "demo", "--max_steps", "2", "--max_train_samples", "32"]
SMALL += ["--max_eval_samples", "16", "--use_cpu", "true"]
TWO = ["--methods", "finetuning", "mask_tuning"]


def refused(*words):
    """What the command says of flags that it refuses."""
    with pytest.raises(UsageError) as raised:
        compare.main([*words])
    assert "\n" not in str(raised.value)
    return str(raised.value)


BAD = {
    "": "--methods is missing: which methods?",
    "--methods finetuning mask_tunning": "did you mean 'mask_tuning'?",
    "--methods finetuning poe:lamda=1": "unknown option of poe 'lamda'",
    "--methods finetuning mask_tuning:alpha": "write a method, or METHOD:option=value",
    "--methods finetuning mask_tuning:alpha=2": "alpha",
    "--methods finetuning mask_tuning:gate=maybe": "gate",
    "--methods finetuning finetuning": "--methods: finetuning is there twice",
    "--methods finetuning dependency_parsing": "it trains no classifier to compare",
    "--methods finetuning poe --baseline reweight": (
        "unknown --baseline 'reweight'; give one of finetuning, poe"
    ),
    "--methods finetuning --grid lerning_rate=1": (
        "unknown option in --grid 'lerning_rate'; did you mean 'learning_rate'?"
    ),
    "--methods finetuning --grid gate=label": (
        "--grid gate: none of these methods has this option, which belongs to mask_tuning"
    ),
    "--methods mask_tuning:alpha=0 --grid alpha=0.1": "--methods fixes it for every method",
    "--methods finetuning --grid learning_rate": "write option=value,value",
    "--methods finetuning --grid learning_rate=fast": "learning_rate",
    "--methods finetuning --grid seed=1,2": "give how many as --seeds",
    "--methods finetuning:seed=7": "give how many as --seeds",
    "--methods finetuning:method=poe": "--method is not for a comparison: give --methods",
    "--methods finetuning --do_eval false": "a comparison measures every run",
    "--methods finetuning --seeds 0": "--seeds is 0: give 1 or more",
    "--methods finetuning --jobs 0": "--jobs is 0: give 1 or more",
    "--methods finetuning --seed 3": "give how many as --seeds",
    "--methods finetuning --method poe": "--method is not for a comparison: give --methods",
    "--methods finetuning --resume_from_checkpoint": "the same command goes on",
    "--methods finetuning --overwrite": "give another --output_dir or another --study",
    "--methods finetuning --do_train false": "`evaluate` measures classifiers that are there",
    "--methods finetuning --keep some": "argument --keep: invalid choice: 'some'",
    "--methods finetuning --learning_rat 1": "did you mean 'learning_rate'?",
    "--methods finetuning --task sts2": "did you mean 'sst2'?",
    "--methods finetuning --storage nonsense": "--storage nonsense: not a database URL",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_flags_are_one_line(words, tmp_path):
    said = refused(*words.split(), "--output_dir", str(tmp_path / "out"))
    assert BAD[words] in said


def test_a_file_of_options_gives_no_order_of_the_data_either(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("seed: 3\nmethod: poe\noutput_dir: x\ndo_train: true\ndata_seed: 7\n")
    said = refused(*SMALL, *TWO, "--config", str(config), "--output_dir", str(tmp_path / "out"))
    assert said.startswith("--data_seed is not for a comparison")


def test_the_task_s_settings_say_when_a_run_is_evaluated(tmp_path):
    """Where they do not, it is at its end only."""
    task = tmp_path / "mine.yaml"
    sets = "".join(
        f"  {name}: {{role: {name}, text: [t], label: l, file: {name}.csv}}\n"
        for name in ("train", "dev")
    )
    task.write_text(
        f"name: mine\ndescription: texts\nlabels: [a, b]\nsets:\n{sets}"
        "methods: {poe: {eval_strategy: epoch, load_best_model_at_end: true}}\n"
    )
    request = ComparisonRequest(["--task", str(task)], (), {}, EMBEDDED)
    plain, poe = (request.words(Variant(name)) for name in ("finetuning", "poe"))
    assert "--eval_strategy" in plain and "--eval_strategy" not in poe


def test_the_masked_lm_head_is_part_of_a_model(tmp_path):
    copied = shutil.copytree(EMBEDDED, tmp_path / "model")
    head = copied / "mlm_head"
    head.mkdir()
    (head / "model.safetensors").write_bytes(b"one")
    words = ("--model_name_or_path", str(copied))

    def model():
        job = job_of(*words)
        return identity_of({"finetuning": job}, [])["variants"]["finetuning"]["model_name_or_path"]

    before = model()
    (copied / "comparison").mkdir()
    (copied / "comparison" / "config.json").write_text("{}")  # no part of the model
    assert model() == before
    (head / "model.safetensors").write_bytes(b"two")
    assert model() != before


def job_of(*words):
    return read_job([*SMALL, *words], EMBEDDED, warn=False)


def test_the_identity_follows_contents_and_options_but_not_places(tmp_path):
    def identity(*words):
        job = job_of(*words)
        return identity_of({"finetuning": job}, read_texts(job))

    def options(*words):
        return identity(*words)["variants"]["finetuning"]

    known = identity()
    assert known == identity("--output_dir", str(tmp_path), "--seed", "7")
    assert known == identity("--dataloader_num_workers", "1", "--report_to", "none")
    assert options("--learning_rate", "1")["learning_rate"] == 1.0
    assert identity("--learning_rate=1e-4") == identity("--learning_rate", "0.0001")
    fewer = identity("--max_eval_samples", "15")
    assert fewer["texts"]["train"] == known["texts"]["train"]
    assert fewer["texts"]["dev"] != known["texts"]["dev"]
    config = tmp_path / "config.yaml"
    for rate in (0.1, 0.2):
        config.write_text(f"learning_rate: {rate}\n")
        assert options("--config", str(config))["learning_rate"] == rate
    for name in ("one", "two"):
        copied = shutil.copytree(EMBEDDED, tmp_path / name)
        assert identity("--model_name_or_path", str(copied)) == known
    for file in ("model.safetensors", "tokenizer.json"):
        before = options("--model_name_or_path", str(copied))["model_name_or_path"]
        changed = copied / file
        changed.write_bytes(changed.read_bytes() + b" ")
        assert options("--model_name_or_path", str(copied))["model_name_or_path"] != before


def runner(folder, *words, **more):
    return CellRunner(
        words=lambda cell: [*SMALL, *words, "--method", cell.variant, "--seed", str(cell.seed)],
        folder=folder,
        identities={"finetuning": "this"},
        embedded=EMBEDDED,
        environment={"OMP_NUM_THREADS": "1"},
        stop=more.get("stop", threading.Event()),
    )


def test_a_cell_that_fails_says_why(tmp_path):
    cell = Cell("finetuning", (("learning_rate", "0.5"),), 1, FINAL)
    with pytest.raises(CellFailed, match=r"no_such.*; .*learning_rate=0\.5_seed=1_this\.log$"):
        runner(tmp_path, "--model_name_or_path", "./no_such")(cell)


def test_folders_of_cells_differ_however_their_names_are_written():
    points = [(("treebank", "a/b"),), (("treebank", "a_b"),), (("x", "y" * 400),)]
    names = {folder_name(Cell("finetuning", point, 1, FINAL)) for point in points}
    assert len(names) == 3 and all(len(name) < 140 and "/" not in name for name in names)


def test_what_an_earlier_study_left_is_not_taken_up(tmp_path):
    """An outcome, and a checkpoint, of the same cell of other code."""
    cell = Cell("finetuning", (), 1, FINAL)
    old, new = (
        CellRunner(lambda cell: [], tmp_path, {"finetuning": name}, EMBEDDED, {}, threading.Event())
        for name in ("old", "new")
    )
    checkpoint = old.folder_of(cell) / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    assert "--overwrite" in old._job(cell, old.folder_of(cell))["flags"]  # as --save_only_model
    (checkpoint / "optimizer.pt").write_bytes(b"")
    (old.folder_of(cell) / "outcome.json").write_text("")  # as a machine without power leaves it
    assert "--resume_from_checkpoint" in old._job(cell, old.folder_of(cell))["flags"]
    assert read_outcome(old.folder_of(cell), "old") is None
    assert "--overwrite" in new._job(cell, new.folder_of(cell))["flags"]


def test_a_full_disk_fails_one_run(tmp_path, monkeypatch):
    def full(self, job, output):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CellRunner, "_run", full)
    with pytest.raises(CellFailed, match=r"No space left on device; .*seed=1_this\.log"):
        runner(tmp_path)(Cell("finetuning", (), 1, FINAL))


def test_a_search_measures_dev_alone_and_workers_may_load_data(tmp_path):
    """One real run; processes of a data loader end with it, as the thread that waits does."""
    found = runner(tmp_path, "--dataloader_num_workers", "1")(Cell("finetuning", (), 1, SEARCH))
    assert [*found.sets] == ["dev"] and len(found.sets["dev"].correct) == 16


@pytest.mark.parametrize(
    ("measured", "again"), [({"near", "far", "both"}, True), ({"near", "both"}, False)]
)
def test_a_set_that_repeats_others_is_no_part_of_a_mean(measured, again):
    assert is_measured_again(SetSpec("both", "ood", repeats=["near", "far"]), measured) is again
    assert is_measured_again(SetSpec("all", "ood", union_of=["near", "far"]), measured) is again
    assert is_measured_again(SetSpec("far", "ood"), measured) is False


def test_a_run_keeps_its_warnings_once():
    logger = logging.getLogger("masktuning.training.run")
    with collected_warnings() as found:
        for _ in range(2):
            logger.warning("warning: %d texts were truncated", 3)
        logger.info("no warning")
    logger.warning("after the run")
    assert found == ["3 texts were truncated"]


def test_a_cell_that_is_killed_is_told_as_out_of_memory(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nread job\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(CellFailed, match=r"ended by the signal SIGKILL \(out of memory\?\); "):
        runner(tmp_path / "runs")(Cell("finetuning", (), 1, FINAL))


def test_a_cell_ends_when_the_comparison_is_stopped_or_dies(tmp_path):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        runner(tmp_path, stop=stop)(Cell("finetuning", (), 1, FINAL))
    flags = [*SMALL[:2], "--output_dir", str(tmp_path / "orphan")]
    job = {"flags": flags, "identity": "this", "search": False, "embedded": str(EMBEDDED)}
    words = [sys.executable, "-m", "masktuning.experiments.cell"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as process:
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.close()  # as the end of the parent does
        assert process.wait(timeout=120) == 3
    assert not (tmp_path / "orphan" / "outcome.json").exists()


def test_a_small_comparison_ends_in_tables_and_goes_on_with_more(tmp_path, capsys, monkeypatch):
    """One real run of each method; then a further method, for which only its own run is new."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    words = [*SMALL, "--seeds", "1", "--output_dir", str(out)]
    compare.main([*TWO[:2], *words])
    printed = capsys.readouterr().out
    assert "final finetuning seed=1: dev" in printed
    for name in ("comparison.md", "comparison.tex", "comparison.csv", "comparison.json"):
        assert (out / name).stat().st_size > 100
    compare.main([*TWO, *words])
    printed = capsys.readouterr().out
    assert "1 of 2 runs were done before" in printed
    assert "final mask_tuning seed=1: dev" in printed and "final finetuning" not in printed
    found = json.loads((out / "comparison.json").read_text())
    [path] = out.glob("runs/demo/final_mask_tuning_seed=1_*/all_results.json")
    kept = json.loads(path.read_text())
    assert f"{kept['eval_dev_accuracy']:.6f}" in json.dumps(rounded(found))
    with pytest.raises(
        UsageError,
        match=r"the study 'demo' was begun otherwise: variants finetuning learning_rate 0\.0003 ",
    ):
        compare.main([*TWO, *words, "--learning_rate", "1e-3"])


def rounded(content):
    """JSON with its numbers in six decimals, as strings."""
    if isinstance(content, dict):
        return {key: rounded(value) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return f"{content:.6f}" if isinstance(content, float) else content


def test_a_dry_run_shows_the_plan_and_trains_nothing(tmp_path, capsys):
    words = ["--grid", "learning_rate=1e-4,3e-4", "--seeds", "2", "--jobs", "2", "--dry_run"]
    compare.main([*TWO[:2], *SMALL, *words, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[:4] == ["finetuning", "2", "2", "2"]
    assert "4 runs, " in printed and "with --jobs 2" in printed
    assert (
        "searched with the seeds 1001, and the chosen ones run anew with the seeds 1, 2" in printed
    )
    assert not (tmp_path / "out").exists()


def test_help_lists_the_flags_and_the_methods(capsys):
    compare.main(["--help"])
    printed = capsys.readouterr().out
    for word in ("--methods", "--grid", "--storage", "mask_tuning", "sst2", "Several machines"):
        assert word in printed


@pytest.mark.slow
def test_killed_half_way_it_ends_with_the_same_table(tmp_path):
    """Real runs: the comparison is killed with its runs, and started again."""
    words = [sys.executable, "-m", "masktuning.compare", *TWO, *SMALL, "--seeds", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tables = []
    for name in ("whole", "killed"):
        command = [*words, "--output_dir", str(tmp_path / name)]
        if name == "killed":
            with subprocess.Popen(command, env=environment) as process:
                wait_for(lambda: [*tmp_path.glob("killed/runs/demo/*finetuning_seed=2_*.log")])
                process.kill()
        subprocess.run(command, env=environment, check=True, timeout=300)
        found = json.loads((tmp_path / name / "comparison.json").read_text())
        tables.append(without_costs(found))
    assert tables[0] == tables[1]


def without_costs(content):
    """What a comparison found but for times, memory and places."""
    if isinstance(content, dict):
        left = ("seconds", "memory", "time", "folder")
        return {k: without_costs(v) for k, v in content.items() if not k.startswith(left)}
    return [*map(without_costs, content)] if isinstance(content, list) else content
