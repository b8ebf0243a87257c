"""Every command and every Python block of the README and of docs/ runs, on tiny stand-ins."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from causal_lm import save_causal_lm
from conftest import ROOT
from families import save_tiny, tiny_model, tiny_tokenizer
from layouts import write_layouts
from test_corpus import SHARE, write_corpus

import masktuning
import masktuning.methods.page as methods_page
from masktuning import ops
from masktuning.methods import METHODS, method_class, options_by_method
from masktuning.tasks import SetSpec, load_task, names

PAGES = {"README.md": (ROOT / "README.md").read_text()} | {
    f"docs/{path.name}": path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))
}
LINK = re.compile(r"\]\(([^)#:]+)")
README, TASKS, METHODS_PAGE = (PAGES[f"{p}.md"] for p in ("README", "docs/tasks", "docs/methods"))
# The two set-up commands are run by .ci/run, in an environment of its own.
SET_UP = [
    'pip install -c constraints.txt ".[bias,compare]" && python -m masktuning.train',
    'pip install -c constraints.txt ".[test]" && pytest',
]
LONG = "takes minutes; tests/test_benchmarks.py runs it on little"
NOT_RUN = {
    **dict.fromkeys(SET_UP, "run by .ci/run"),
    "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cu126": "the network",
    "python benchmarks/compare_rows.py": "takes minutes; .ci/run times the same kernels",
    "python benchmarks/bench_epoch.py epoch.json --task sst2 --model bert-4x256 --rows 10000": LONG,
    "python benchmarks/bench_step.py step.json": LONG,
    "python benchmarks/bench_processes.py processes.json": LONG,
    "python benchmarks/startup.py": "a minute; tests/training/test_startup.py checks the imports",
    "python -m masktuning.evaluate --predictor fewshot --fewshot_backend completions "
    "--fewshot_base_url http://localhost:8000/v1 --fewshot_model served --task sst2 "
    "--data_dir data --sets dev --output_dir asked": (
        "an endpoint; tests/evaluation/test_fewshot_endpoint.py has one"
    ),
    "python -m masktuning.reproduce --table 1 --dry_run": (
        "a minute of steps of large models; tests/experiments/test_reproduce.py has small ones"
    ),
    **dict.fromkeys(
        (
            f"python -m masktuning.reproduce --table 1 {words}"
            for words in (
                "--data_dir data --output_dir tables",
                "--data_dir data --output_dir tables --protocol paper-like",
                "--models roberta-base --methods finetuning mask_tuning --tasks sst2 "
                "--data_dir data --output_dir tables",
            )
        ),
        "the network and weeks",
    ),
    "bash benchmarks/gpu_check.sh measured_on_gpu": "a GPU; tests/ops/test_gpu_check.py reads it",
}
# Flags that make a long command short. The demo is also run whole, by .ci/run and as a slow test.
_SMALL_DEMO = "--max_steps 2 --max_eval_samples 20"
SHORTENED = {
    "python -m masktuning.train": _SMALL_DEMO,
    "python -m masktuning.train --task demo-pairs": _SMALL_DEMO,
    "python -m masktuning.train --task demo --num_train_epochs 8 --learning_rate 1e-3 "
    "--warmup_steps 0": _SMALL_DEMO,
    "python -m masktuning.compare --methods finetuning mask_tuning --seeds 3 "
    "--train_file train.csv --validation_file dev.csv --eval_files reviews=reviews.csv "
    "--model_name_or_path roberta-base --output_dir comparison": "--max_steps 2 --seeds 1",
    "python -m masktuning.reproduce --table 3 --preset demo --output_dir small": (
        f"{_SMALL_DEMO} --max_train_samples 64 --seeds 1 --methods finetuning"
    ),
    "python -m masktuning.demo.pretrain --corpus corpus.txt --output_dir pretrained": (
        f"--held_out_share {SHARE} --vocab_size 90 --hidden_size 32 --num_layers 1 --num_heads 2 "
        "--max_length 32 --batch_size 16 --max_steps 5 --warmup_steps 2"
    ),
}
# What a command must print, one of these words.
PRINTS = {
    "masktuning.train": ("dev", "--alpha"),
    "masktuning.evaluate": ("dev", "reviews", "forum", "predictions_test_file"),
    "masktuning.compare": ("final runs", "Estimated from four steps"),
    "masktuning.tasks": ("train",),
    "masktuning.predict": ("the predicted labels of 32 texts",),
    "masktuning.methods": ("mask_tuning",),
    "masktuning.export": ("model.onnx",),
    "masktuning.reproduce": ("ood_adversarial",),
    "masktuning.info": ("torch",),
    "masktuning.demo.pretrain": ("loss",),
    "masktuning.demo.export": ("checkpoint",),
    "benchmarks/host_cost.py": ("sample_masks",),
}
# Starts each program as `python -m` would, in a fork of a process that has the libraries imported.
SERVER = """
import json, os, runpy, signal, sys
import datasets, masktuning, torch, transformers.hf_argparser
masktuning.MaskTuningTrainer
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)
os.chdir(job["folder"])
for descriptor, path in enumerate((os.devnull, job["printed"], job["errors"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
sys.argv = job["words"]
if job["module"]:
    runpy.run_module(job["words"][0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(job["words"][0], run_name="__main__")
"""


def items(page):
    """(language, text) of what a page holds to be run, in order; Python blocks in a row are one."""
    found = []
    for language, block in re.findall(r"```(bash|python|yaml)\n(.*?)```", PAGES[page], re.DOTALL):
        if language == "bash":
            found += [("bash", line) for line in block.strip().splitlines()]
        elif language == "python" and found and found[-1][0] == "python":
            found[-1] = ("python", found[-1][1] + block)
        else:
            found.append((language, block))
    return found


# Pages whose blocks another test runs.
ELSEWHERE = {"docs/extending.md": "tests/methods/test_registry.py installs and trains its method"}
COMMANDS = [text for page in PAGES for language, text in items(page) if language == "bash"]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A folder with what the commands name: models, the tasks' data, own files, results."""
    folder = tmp_path_factory.mktemp("stand_ins")
    save_tiny(folder / "roberta-base", "roberta")
    for name, labels in (("classifier", {0: "negative", 1: "positive"}), ("unnamed", None)):
        settings = {"id2label": labels} if labels else {}
        tiny_model("bert", **settings).classifier.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    data = write_layouts(folder / "data")
    rows = [(f"w{7 * i % 80} w{i % 11}", 7 * i % 80 % 2) for i in range(32)]
    moods = [(text, ("calm", "angry")[label]) for text, label in rows]
    for name in ("train", "dev"):
        write_rows(data / "sst2" / f"{name}.tsv", "sentence\tlabel", rows, " \t")
        write_rows(data / f"{name}_mails.csv", "body,mood", moods)
    calls = [json.dumps({"body": text, "mood": label}) for text, label in rows]
    (data / "phone.jsonl").write_text("\n".join(calls) + "\n")
    for name in ("train", "dev", "reviews"):
        write_rows(folder / f"{name}.csv", "text,label", rows)
    feelings = [(text, ("negative", "positive")[label]) for text, label in rows]
    write_rows(folder / "forum.csv", "text,label", feelings)
    (folder / "unlabelled.csv").write_text("text\n" + "".join(f"{text}\n" for text, _ in rows))
    bias = [{"example_id": i, "probabilities": [0.6, 0.4]} for i in range(len(rows))]
    (folder / "bias.jsonl").write_text("\n".join(map(json.dumps, bias)) + "\n")
    hub = folder / "cornell-movie-review-data" / "rotten_tomatoes"
    for name in ("train", "validation"):
        write_rows(hub / f"{name}.csv", "text,label", rows)
    for run in (f"{method}-{seed}" for method in ("mask", "plain") for seed in (1, 2, 3)):
        (folder / run).mkdir()
        results = json.dumps({"eval_dev_accuracy": int(run[-1]) / 10})
        (folder / run / "all_results.json").write_text(results)
    save_causal_lm(folder / "language-model")
    write_corpus(folder / "corpus.txt")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return folder


def write_rows(path, header, rows, separator=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *(f"{text}{separator}{label}" for text, label in rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    environment = {**os.environ, "HF_HOME": str(tmp_path_factory.mktemp("hf"))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as process:
        assert process.stdout.readline() == "ready\n", "its error is in the captured output"
        yield process
        process.stdin.close()


def run(server, folder, *words, module=True):
    """What a program prints; fails if it does."""
    printed, errors = folder / "printed.txt", folder / "errors.txt"
    job = {"folder": str(folder), "words": words, "module": module}
    job |= {"printed": str(printed), "errors": str(errors)}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    code = server.stdout.readline().strip()
    assert code == "0", f"{' '.join(words)}: exit code {code}: {errors.read_text()[-3000:]}"
    return printed.read_text()


def run_command(server, folder, command):
    python, *words = f"{command} {SHORTENED.get(command, '')}".split()
    assert python == "python", command
    module = words[0] == "-m"
    words = words[module:]
    printed = run(server, folder, *words, module=module)
    assert any(word in printed for word in PRINTS[words[0]]), f"{command}: {printed}"


@pytest.mark.parametrize("page", [page for page in PAGES if items(page) and page not in ELSEWHERE])
def test_a_page_runs_in_its_order(page, server, stand_ins, tmp_path):
    """In order, since evaluate and resume read what train wrote."""
    folder = tmp_path / "folder"
    shutil.copytree(stand_ins, folder, symlinks=True)
    for language, text in items(page):
        if language == "yaml":
            (folder / f"{yaml.safe_load(text)['name']}.yaml").write_text(text)
        elif language == "python":
            (folder / "block.py").write_text(text)
            assert run(server, folder, "block.py", module=False).strip()
        elif text not in NOT_RUN:
            run_command(server, folder, text)
    if page == "README.md":
        for run_folder in ("mine", "from_python"):
            assert (folder / run_folder / "config.json").is_file()
        assert "reviews" in (folder / "mine" / "README.md").read_text()
    if page == "docs/tasks.md":
        assert load_task(str(folder / "tickets.yaml")).named("phone").f1 == "angry"


def test_nothing_is_passed_over_but_what_is_listed():
    assert {*NOT_RUN, *SHORTENED} <= set(COMMANDS)
    ours = [line for line in COMMANDS if line.startswith("pip") and "constraints.txt" in line]
    assert ours == SET_UP
    assert set(SET_UP) <= {text for _, text in items("README.md")}
    assert sum(page != "docs/models.md" and bool(items(page)) for page in PAGES) >= 7


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 120
    reached, new = set(), {"README.md"}
    while new:  # a page may lead to another one
        reached |= new
        targets = {(str(Path(page).parent), t) for page in new for t in LINK.findall(PAGES[page])}
        new = {os.path.normpath(f"{folder}/{t}") for folder, t in targets} & PAGES.keys() - reached
    assert reached == PAGES.keys()
    (change,) = re.findall(r"```diff\n(.*?)```", README, re.DOTALL)
    added = [line[1:] for line in change.splitlines() if line.startswith("+")]
    (block,) = (text for language, text in items("README.md") if language == "python")
    assert len(added) == 2 and all(line in block for line in added)


def test_links_and_named_files_are_there():
    for page, text in PAGES.items():
        here = (ROOT / page).parent
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            linked = (here / path).resolve() if path else ROOT / page
            assert linked.is_file(), f"{page}: {target}"
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            assert not anchor or anchor in map(anchor_of, headings), f"{page}: {target}"
        for folder, path in re.findall(r"`((?:csrc|kernels|benchmarks|tests)/)([\w/.-]+)`", text):
            assert (ROOT / folder / path).exists(), f"{page}: {folder}{path}"


def anchor_of(heading):
    """A heading's anchor on GitHub."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_tasks_and_their_keys_are_those_of_the_code():
    rows = re.findall(r"^\| `([\w-]+)` \|", TASKS, re.MULTILINE)
    keys = {field.name for field in fields(SetSpec)} - {"name", "own_file"}
    of_a_task = {"name", "description", "labels", "settings", "presets", "methods"}
    of_a_task |= {"include", "sets"}
    assert set(rows) == {*names(), *keys, *of_a_task}


def test_methods_and_their_options_are_those_of_the_code():
    parts = re.split(r"^## `(\w+)`$", METHODS_PAGE, flags=re.MULTILINE)[1:]
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    flags = {k: set(re.findall(r"^\| `--(\w+)`", v, re.MULTILINE)) for k, v in sections.items()}
    assert flags == options_by_method()
    assert all(f"`{name}`" in README for name in flags)


def test_the_page_of_methods_is_written_from_their_docstrings():
    costs = ROOT / "benchmarks" / "results" / "methods_cpu.json"
    written = methods_page.page(costs) + "\n"
    assert written == METHODS_PAGE, "python -m masktuning.methods page writes it"
    for name in METHODS:
        assert f"[`{name}`](#{name}) | {methods_page.needs(name)} |" in METHODS_PAGE
        assert method_class(name).when.endswith(".") and method_class(name).__doc__


def test_result_types_are_those_of_the_ops():
    rows = re.findall(r"^\| `\w+` \| `(\w+)` \| (.*) \|$", PAGES["docs/ops.md"], re.MULTILINE)
    assert len(rows) == 4
    for name, named in rows:
        assert tuple(re.findall(r"`(\w+)`", named)) == getattr(ops, name)._fields, name


def test_public_names_are_explained():
    everything = "\n".join(PAGES.values())
    for name in masktuning.__all__:
        assert re.search(rf"\b{name}\b", everything), name
