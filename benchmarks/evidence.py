"""Which settings of Mask-tuning hold up: a grid of short runs of a small encoder, over seeds.

    python benchmarks/evidence.py sst2_2000 DATA MODEL benchmarks/results/evidence_sst2_2000.json

DATA is the folder of the tasks' files and MODEL a checkpoint with a masked-LM head. Every cell is
one run of `masktuning.train` in one thread, measured on dev and on every out-of-distribution set in
DATA; `--jobs` runs go on at a time. The file is written anew after each cell, and a grid that was
stopped goes on with the cells that the file lacks. `python benchmarks/evidence_tables.py FILE`
prints the tables.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, write_json

from masktuning import tasks

SHARED = ("--precision", "auto", "--save_strategy", "no", "--eval_strategy", "no")
PLAIN = "plain"


class Grid(NamedTuple):
    """The runs of one grid: every setting with every seed."""

    task: str
    flags: str
    settings: dict[str, str]
    """Flags of Mask-tuning by the name of the setting; `PLAIN` is fine-tuning."""
    sets: tuple[str, ...] = ()
    """The sets to measure on; all that are there by default."""
    seeds: tuple[int, ...] = (1, 2, 3)


def settings(
    policies: tuple[str, ...], alphas: tuple[str, ...], masked: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """All combinations of mask policies, alphas, and (min_per_example, mask_rate)."""
    return {
        f"{policy}, alpha {alpha}, at least {least}, rate {rate}": f"--mask_policy {policy} "
        f"--alpha {alpha} --min_per_example {least} --mask_rate {rate}"
        for policy in policies
        for least, rate in masked
        for alpha in alphas
    }


_ALPHAS = ("0", "auto", "0.1")
_FEW, _ONE, _MORE = ("0", "0.05"), ("1", "0.05"), ("0", "0.15")
_SCREEN = {
    PLAIN: "",
    **settings(("random",), _ALPHAS, (_FEW, _ONE)),
    **settings(("random", "spare", "aim"), ("0", "auto"), (_MORE,)),
    **settings(("spare", "aim"), ("auto",), (_ONE,)),
    "random, alpha auto, at least 0, rate 0.15, gate": "--alpha auto --min_per_example 0 "
    "--mask_rate 0.15 --gate label",
}
_FIRST = {
    PLAIN: "",
    "default": "",
    "at least 1": "--min_per_example 1",
    "alpha 0": "--alpha 0",
}
_EDITED = ("train", "dev", "imdb_cont_dev", "imdb_cad_dev")
_2000 = "--max_train_samples 2000 --num_train_epochs 1"
GRIDS = {
    "sst2_2000": Grid("sst2", _2000, _SCREEN, _EDITED),
    "sst2_first": Grid("sst2", _2000, _FIRST, _EDITED),
    "qqp_first": Grid("qqp", _2000, _FIRST),
    "csv_first": Grid("", "--num_train_epochs 1", _FIRST),
    "sst2_8000": Grid(
        "sst2",
        "--max_train_samples 8000 --num_train_epochs 1",
        {PLAIN: "", "default": ""},
        _EDITED,
    ),
}


def cells(grid: Grid) -> Iterator[tuple[str, list[str]]]:
    """The name and the flags of every run, all settings of one seed before the next seed."""
    for seed in grid.seeds:
        for name, flags in grid.settings.items():
            method = "finetuning" if name == PLAIN else "mask_tuning"
            words = ["--method", method, "--seed", str(seed)]
            yield f"{name}; seed {seed}", [*words, *grid.flags.split(), *flags.split(), *SHARED]


def data_flags(grid: Grid, data: str, folder: str) -> list[str]:
    """The flags of the grid's task, or of files of one's own if it has none."""
    if grid.task:
        return ["--task", task_with(grid, folder), "--data_dir", data]
    return ["--train_file", f"{folder}/train.csv", "--validation_file", f"{folder}/dev.csv"]


def write_own_files(data: str, folder: str) -> None:
    """CSV files with columns text and label: 2,000 phrases from the middle of SST-2, and dev."""
    for name, first, count in (("train", 30_000, 2_000), ("dev", 0, None)):
        with Path(data, "sst2", f"{name}.tsv").open(encoding="utf-8") as file:
            rows = [line.rstrip("\n").split("\t") for line in file][1:]
        chosen = rows[first:] if count is None else rows[first : first + count]
        with Path(folder, f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text", "label"], *chosen])


def task_with(grid: Grid, folder: str) -> str:
    """The grid's task; if it names sets, a copy of the task's file with these alone."""
    if not grid.sets:
        return grid.task
    task = yaml.safe_load(Path(tasks.__file__).with_name(f"{grid.task}.yaml").read_text())
    kept = {name: task["sets"][name] for name in grid.sets}
    for one in kept.values():
        one.pop("original", None)
    path = Path(folder, f"{grid.task}.yaml")
    path.write_text(yaml.safe_dump({**task, "sets": kept}))
    return str(path)


def scores(grid: Grid, data: str, model: str, flags: list[str]) -> dict[str, Any]:
    """The accuracies of one run in per cent by set, and what training said."""
    with tempfile.TemporaryDirectory() as folder:
        if not grid.task:
            write_own_files(data, folder)
        command = [sys.executable, "-m", "masktuning.train", *data_flags(grid, data, folder)]
        command += ["--model_name_or_path", model, *flags, "--output_dir", f"{folder}/run"]
        done = subprocess.run(
            [*command, "--disable_tqdm", "true"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
        results = json.loads(Path(folder, "run", "all_results.json").read_text())
    ending = "_accuracy"
    found = {
        name.removeprefix("eval_").removesuffix(ending): 100 * value
        for name, value in results.items()
        if name.startswith("eval_") and name.endswith(ending)
    }
    log = {name: value for name, value in results.items() if name.startswith("train_")}
    return {"accuracy": found, "train": log}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", choices=GRIDS)
    parser.add_argument("data")
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    grid = GRIDS[arguments.grid]
    result: dict[str, Any] = {
        "command": f"python benchmarks/evidence.py {arguments.grid} DATA MODEL",
        "model": Path(arguments.model).name,
        "task": grid.task,
        "sets": grid.sets or "all",
        "flags": " ".join([grid.flags, *SHARED]),
        "settings": grid.settings,
        "runs": {},
    }
    if arguments.out.is_file():
        result["runs"] = json.loads(arguments.out.read_text())["runs"]
    lock = threading.Lock()

    def run(name: str, flags: list[str]) -> None:
        found = scores(grid, arguments.data, arguments.model, flags)
        with lock:
            result["runs"][name] = found
            write_json(str(arguments.out), {**result, **environment()})
        accuracies = " ".join(f"{k} {v:.1f}" for k, v in found["accuracy"].items())
        print(f"{name}: {accuracies}", flush=True)

    left = [(name, flags) for name, flags in cells(grid) if name not in result["runs"]]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for future in [pool.submit(run, name, flags) for name, flags in left]:
            future.result()


if __name__ == "__main__":
    main()
