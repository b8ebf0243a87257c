"""The learning rates of the demo's methods: those with the best accuracy on dev, for one seed.

OMP_NUM_THREADS=1 python benchmarks/demo_search.py benchmarks/results/demo_search.json

The sets out of distribution are neither read nor recorded. The seed is none of those that
benchmarks/demo_seeds.py reports. On a tie the first learning rate of the grid is taken.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment

from masktuning import train
from masktuning.evaluation.aggregate import RUN_RESULTS

SEED = 0
LEARNING_RATES = (3e-4, 5e-4, 1e-3)
METHODS = ("finetuning", "mask_tuning", "bias_product", "learned_mixin")


def dev_accuracy(method: str, learning_rate: float, more: list[str]) -> float:
    """The accuracy on dev in per cent after the training of the demo with this learning rate."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--task", "demo", "--method", method, "--learning_rate", str(learning_rate)]
        words += ["--seed", str(SEED), "--save_strategy", "no", "--disable_tqdm", "true"]
        train.main([*words, "--output_dir", folder, *more])
        results = json.loads((Path(folder) / RUN_RESULTS).read_text())
    return round(100 * results["eval_dev_accuracy"], 2)


def search(more: list[str]) -> dict[str, dict[str, float]]:
    """The accuracies on dev by method and learning rate; `more` are further flags."""
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for rate in LEARNING_RATES:
            found.setdefault(method, {})[str(rate)] = dev_accuracy(method, rate, more)
            print(f"{method} {rate}: dev {found[method][str(rate)]}", file=sys.stderr, flush=True)
    return found


if __name__ == "__main__":
    path, *more = sys.argv[1:]
    found = search(more)
    chosen = {method: max(rates, key=lambda rate: rates[rate]) for method, rates in found.items()}
    result = {
        "command": "python benchmarks/demo_search.py",
        **environment(),
        "seed": SEED,
        "dev": found,
        "chosen": chosen,
    }
    Path(path).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(chosen))
