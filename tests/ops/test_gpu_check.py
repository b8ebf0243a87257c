"""benchmarks/gpu_check.sh without a GPU: its steps, what it writes, and how it ends.

A stand-in for python takes the place of the steps, because what they run needs a GPU.
"""

import json
import os
import re
import subprocess
import sys
import tarfile

import pytest
from conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
# Acts for each step by its arguments. $FAILING names a step that fails, $SLOW one that hangs.
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *gpu_summary.py*) exec {python} "$@" ;;
  *gpu_probe.py*) echo '{{"gpu": "Test GPU", "torch": "2", "triton": "3", "driver": "5"}}' >"$2" ;;
  *"compare_gpu.py --peers"*) echo '{{}}' >"$3" ;;
  *compare_gpu.py*) echo '{{}}' >"$2"; echo "MISSED share of copy: 0.5 (at least 0.9)" ;;
  *bench_step.py*|*small_training.py*) echo '{{}}' >"$2" ;;
esac
echo "ran $*"
[ -n "${{SLOW:-}}" ] && [[ "$*" == *"$SLOW"* ]] && sleep 60
[ -n "${{FAILING:-}}" ] && [[ "$*" == *"$FAILING"* ]] && exit 3
exit 0
"""
SANITIZER = """#!/usr/bin/env bash
while [[ "$1" != */python3 ]]; do
  [ "$1" = --tool ] && tool=$2
  shift
done
"$@" || exit $?
echo "========= COMPUTE-SANITIZER"
[ -n "${FOUND:-}" ] && [ "$tool" = initcheck ] && echo "$FOUND"
[ "$tool" = "${CUT:-}" ] || echo "========= ERROR SUMMARY: 7 errors"
"""


@pytest.fixture
def check(tmp_path):
    """Runs the script with the stand-ins; returns exit code, standard output and output folder."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (
        ("python3", PYTHON.format(python=sys.executable)),
        ("compute-sanitizer", SANITIZER),
    ):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    def run(*arguments, script=SCRIPT, **settings):
        path = f"{tools}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(script), *arguments, str(tmp_path / "out")],
            env={**os.environ, "PATH": path, **settings},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not done.stderr, done.stderr
        return done.returncode, done.stdout, tmp_path / "out"

    return run


def limits():
    """The name and the limit in seconds of every step of the script, in order."""
    lines = SCRIPT.read_text().splitlines()
    steps = [re.match(r"\s*(?:step|sanitize) (\w+) (\d+) ", line) for line in lines]
    return [(match[1], int(match[2])) for match in steps if match]


def test_the_limits_add_up():
    steps = limits()
    assert len(steps) == 13
    # What matters most is first, and cannot be starved by the rest; the deadline ends that.
    assert sum(seconds for _, seconds in steps[:5]) < 400
    assert "\nquick= limit=540\n" in SCRIPT.read_text()
    order = [name for name, _ in steps]
    assert order[:5] == ["gpu", "build", "rows", "bench_step", "tests"]
    assert order[5:8] == ["memcheck", "racecheck", "initcheck"]


def test_what_it_leaves(check):
    code, printed, out = check()
    assert code == 0 and printed.splitlines()[-1] == "all passed"
    assert "MISSED share of copy: 0.5 (at least 0.9)" in printed.splitlines()
    left = {path.name for path in out.iterdir()}
    assert {"summary.json", "logs.tar.gz", "gpu.json", "bench_step.json"} <= left
    assert len(left) <= 8 and all(path.is_file() for path in out.iterdir())
    summary = json.loads((out / "summary.json").read_text())
    assert summary["machine"] == {"gpu": "Test GPU", "torch": "2", "triton": "3", "driver": "5"}
    ran = [step["name"] for step in summary["steps"]]
    assert ran == [name for name, _ in limits()]
    assert summary["missed"] == ["MISSED share of copy: 0.5 (at least 0.9)"]
    with tarfile.open(out / "logs.tar.gz") as archive:
        assert {f"{name}.log" for name in ran} <= set(archive.getnames())


def test_a_quick_check_leaves_the_slow_steps_out(check):
    code, _, out = check("--quick")
    assert code == 0
    steps = json.loads((out / "summary.json").read_text())["steps"]
    assert [step["name"] for step in steps] == ["gpu", "build", "rows", "bench_step", "tests"]


def test_the_steps_after_a_failed_one_run(check):
    code, printed, out = check(FAILING="bench_step.py")
    assert code == 1 and printed.splitlines()[-1].startswith("failed: bench_step (see ")
    summary = json.loads((out / "summary.json").read_text())
    codes = {step["name"]: step["exit"] for step in summary["steps"]}
    assert codes.pop("bench_step") == 3 and len(codes) == 12 and not any(codes.values())
    assert "ran benchmarks/bench_step.py" in summary["last_lines"]["bench_step"][-1]


def test_a_step_out_of_time_is_cut_off_and_leaves_what_it_had(check, tmp_path):
    shorter = SCRIPT.read_text().replace("step rows 75", "step rows 6")
    folder = tmp_path / "checkout" / "benchmarks"
    folder.mkdir(parents=True)
    for file in (ROOT / "benchmarks").glob("*.*"):
        (folder / file.name).write_text(file.read_text())
    (folder / "gpu_check.sh").write_text(shorter)
    code, printed, out = check("--quick", script=folder / "gpu_check.sh", SLOW="compare_gpu.py")
    assert code == 1 and "rows: FAILED (124)" in printed
    assert (out / "gpu.json").is_file()
    steps = json.loads((out / "summary.json").read_text())["steps"]
    assert [step["exit"] for step in steps] == [0, 0, 124, 0, 0]


@pytest.mark.parametrize(
    ("settings", "tool", "code"),
    [
        ({"FOUND": "=========     at substitute_rows_float32_128x4+0x40"}, "initcheck", 9),
        ({"FOUND": "=========     at void at::native::topk_kernel+0x40"}, "", 0),
        ({"CUT": "racecheck"}, "racecheck", 8),
    ],
    ids=["ours", "torch's", "cut off"],
)
def test_what_the_sanitizers_find_in_our_kernels_counts(check, settings, tool, code):
    _, _, out = check(**settings)
    steps = json.loads((out / "summary.json").read_text())["steps"]
    assert {step["name"]: step["exit"] for step in steps if step["exit"]} == (
        {tool: code} if tool else {}
    )


def test_a_machine_without_a_gpu(tmp_path):
    """With the real interpreter there is one line, exit code 1, and a summary."""
    path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env={**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert re.search(r"^failed: torch .* sees no GPU$", done.stdout, re.MULTILINE)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [step["exit"] for step in summary["steps"]] == [1]


def test_arguments_are_checked():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


@pytest.mark.parametrize("arguments", [["--help"], ["--quick", "-x"], [""], ["/proc/nowhere/out"]])
def test_without_an_output_folder_nothing_runs(arguments, tmp_path):
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert "usage: bash" in done.stderr or "mkdir: cannot create" in done.stderr
    assert not (ROOT / "summary.json").exists() and not list(tmp_path.iterdir())
