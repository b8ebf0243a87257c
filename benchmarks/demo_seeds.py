"""Both methods on a demo task over five seeds: mean, standard deviation, paired difference.

OMP_NUM_THREADS=1 python benchmarks/demo_seeds.py demo benchmarks/results/demo_five_seeds.json
OMP_NUM_THREADS=2 python benchmarks/demo_seeds.py demo \\
    benchmarks/results/demo_five_seeds_2_threads.json
python benchmarks/demo_seeds.py demo-pairs benchmarks/results/demo-pairs_five_seeds.json

The demo prints what is in masktuning/demo/seeds.json; this command makes it of those results:

python benchmarks/demo_seeds.py --package
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
METHODS = {"finetuning": "finetuning", "mask_tuning": "."}
RESULTS = Path(__file__).parent / "results"
PACKAGED = Path(__file__).parents[1] / "masktuning" / "demo" / "seeds.json"


def accuracies(task: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """The accuracies of one run of the command in per cent, by method and set."""
    command = [sys.executable, "-m", "masktuning.train", "--task", task, "--seed", str(seed)]
    subprocess.run(
        [*command, "--output_dir", str(folder), "--disable_tqdm", "true"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = {}
    for method, part in METHODS.items():
        results = json.loads((folder / part / "all_results.json").read_text())
        found[method] = {name: 100 * results[f"eval_{name}_accuracy"] for name in SETS}
    return found


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation of each cell, and of Mask-tuning minus fine-tuning."""
    table: dict[str, Any] = {}
    for name in SETS:
        columns = {method: [run[method][name] for run in runs] for method in METHODS}
        pairs = zip(columns["mask_tuning"], columns["finetuning"], strict=True)
        columns["difference"] = [tuned - plain for tuned, plain in pairs]
        table[name] = {
            what: {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
            for what, values in columns.items()
        }
    return table


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
    task = sys.argv[1] if len(sys.argv) > 1 else "demo"
    with tempfile.TemporaryDirectory() as folder:
        runs = [accuracies(task, seed, Path(folder) / str(seed)) for seed in SEEDS]
    command = f"python benchmarks/demo_seeds.py {task}"
    result = {"command": command, **environment(), "seeds": SEEDS, "runs": runs}
    result["summary"] = summary(runs)
    text = json.dumps(result, indent=1)
    for name, row in result["summary"].items():
        cells = [f"{what} {v['mean']:.1f} +- {v['sd']:.1f}" for what, v in row.items()]
        print(f"{name}: {', '.join(cells)}")
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text + "\n")
