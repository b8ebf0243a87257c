"""The methods of a demo task over five seeds: mean, standard deviation, paired differences.

OMP_NUM_THREADS=1 python benchmarks/demo_seeds.py demo benchmarks/results/demo_five_seeds.json
python benchmarks/demo_seeds.py demo-pairs benchmarks/results/demo-pairs_five_seeds.json

The demo prints what is in masktuning/demo/seeds.json; this command makes it of those results:

python benchmarks/demo_seeds.py --package

The results are written after each seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment

SEEDS = (1, 2, 3, 4, 5)
SETS = ("dev", "ood_balanced", "ood_adversarial")
METHODS = {
    "finetuning": "finetuning",
    "mask_tuning": ".",
    "bias_product": "bias_product",
    "learned_mixin": "learned_mixin",
}
BASELINE = "finetuning"
RESULTS = Path(__file__).parent / "results"
PACKAGED = Path(__file__).parents[1] / "masktuning" / "demo" / "seeds.json"


def accuracies(task: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """The accuracies of one run of the command in per cent, by method and set."""
    command = [sys.executable, "-m", "masktuning.train", "--task", task, "--seed", str(seed)]
    subprocess.run(
        [*command, "--output_dir", str(folder), "--disable_tqdm", "true", "--save_strategy", "no"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = {}
    for method, part in METHODS.items():
        results = json.loads((folder / part / "all_results.json").read_text())
        found[method] = {name: 100 * results[f"eval_{name}_accuracy"] for name in SETS}
    return found


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation by set and method, and of each method minus fine-tuning."""
    table: dict[str, Any] = {}
    for name in SETS:
        columns = {method: [run[method][name] for run in runs] for method in METHODS}
        table[name] = {method: _statistics(values) for method, values in columns.items()}
        table[name]["minus_finetuning"] = {
            method: _statistics([a - b for a, b in zip(values, columns[BASELINE], strict=True)])
            for method, values in columns.items()
            if method != BASELINE
        }
    return table


def _statistics(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def package() -> None:
    """Writes the accuracies of all recorded results where the demo reads them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(RESULTS.glob("demo*_five_seeds*.json")):
        record = json.loads(path.read_text())
        runs = [
            {
                m: {name: round(value, 2) for name, value in cells.items()}
                for m, cells in run.items()
            }
            for run in record["runs"]
        ]
        part = {"threads": record["threads"], "seeds": record["seeds"], "runs": runs}
        found.setdefault(path.name.partition("_")[0], []).append(part)
    PACKAGED.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--package"]:
        package()
        sys.exit()
    task, path = sys.argv[1], Path(sys.argv[2])
    runs: list[dict[str, dict[str, float]]] = []
    result = {"command": f"python benchmarks/demo_seeds.py {task}", **environment()}
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(accuracies(task, seed, Path(folder)))
        print(f"seed {seed}: {runs[-1]}", flush=True)
        result |= {"seeds": SEEDS[: len(runs)], "runs": runs}
        if len(runs) > 1:
            result["summary"] = summary(runs)
        path.write_text(json.dumps(result, indent=1) + "\n")
