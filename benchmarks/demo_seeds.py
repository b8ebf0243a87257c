"""The methods of a demo task over five seeds: mean, standard deviation, paired differences.

OMP_NUM_THREADS=1 python benchmarks/demo_seeds.py demo benchmarks/results/demo_five_seeds.json
OMP_NUM_THREADS=2 python benchmarks/demo_seeds.py demo \\
    benchmarks/results/demo_five_seeds_2threads.json
OMP_NUM_THREADS=2 python benchmarks/demo_seeds.py demo-pairs \\
    benchmarks/results/demo-pairs_five_seeds.json

Methods can be named after the file; the results of the others stay as they are in it. The file is
written after each training. A training by itself is the same as in the demo, which a test checks.

The demo prints what is in masktuning/demo/seeds.json; this command makes it of those results:

python benchmarks/demo_seeds.py --package
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment

from masktuning import train

SEEDS = (1, 2, 3, 4, 5)
SETS = ("dev", "ood_balanced", "ood_adversarial")
METHODS = ("finetuning", "mask_tuning", "bias_product", "learned_mixin")
BASELINE = "finetuning"
RESULTS = Path(__file__).parent / "results"
PACKAGED = Path(__file__).parents[1] / "masktuning" / "demo" / "seeds.json"


def accuracies(task: str, method: str, seed: int) -> dict[str, float]:
    """The accuracies of one training of the demo in per cent, by set."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--task", task, "--method", method, "--seed", str(seed)]
        words += ["--save_strategy", "no", "--disable_tqdm", "true"]
        train.main([*words, "--output_dir", folder])
        results = json.loads((Path(folder) / "all_results.json").read_text())
    return {name: round(100 * results[f"eval_{name}_accuracy"], 2) for name in SETS}


def record(task: str, path: Path, methods: list[str]) -> None:
    """Trains each of the methods with each seed, and writes what all have given so far."""
    old = json.loads(path.read_text()) if path.is_file() else {"runs": [{} for _ in SEEDS]}
    runs: list[dict[str, dict[str, float]]] = old["runs"]
    facts = environment()
    commits = old.get("commits", {})
    for method in methods:
        commits[method] = facts["commit"]
        for run in runs:
            run.pop(method, None)
        for seed, run in zip(SEEDS, runs, strict=True):
            run[method] = accuracies(task, method, seed)
            print(f"{method}, seed {seed}: {run[method]}", file=sys.stderr, flush=True)
            result = {"command": f"python benchmarks/demo_seeds.py {task}", **facts}
            ordered = [{name: run[name] for name in METHODS if name in run} for run in runs]
            result |= {"commits": commits, "seeds": SEEDS, "runs": ordered}
            result["summary"] = summary(runs)
            path.write_text(json.dumps(result, indent=1) + "\n")


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation by set and method, and of each method minus fine-tuning.

    Only of methods that all seeds have.
    """
    complete = [method for method in METHODS if all(method in run for run in runs)]
    table: dict[str, Any] = {}
    for name in SETS:
        columns = {method: [run[method][name] for run in runs] for method in complete}
        table[name] = {method: _statistics(values) for method, values in columns.items()}
        table[name]["minus_finetuning"] = {
            method: _statistics([a - b for a, b in zip(values, columns[BASELINE], strict=True)])
            for method, values in columns.items()
            if BASELINE in columns and method != BASELINE
        }
    return table


def _statistics(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def package() -> None:
    """Writes the accuracies of all recorded results where the demo reads them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("demo*_five_seeds*.json")):
        recorded = json.loads(path.read_text())
        runs = [
            {
                method: {name: round(value, 2) for name, value in run[method].items()}
                for method in METHODS
                if method in run
            }
            for run in recorded["runs"]
        ]
        part = {"threads": recorded["threads"], "seeds": recorded["seeds"], "runs": runs}
        found.setdefault(path.name.partition("_")[0], []).append(part)
    PACKAGED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--package"]:
        package()
    else:
        task, path, *methods = sys.argv[1:]
        record(task, Path(path), methods or list(METHODS))
