"""What batches of similar length do to accuracy: SST-2 and edited IMDB reviews over five seeds.

    python benchmarks/similar_lengths.py DATA benchmarks/results/similar_lengths.json

DATA is the folder of the task's files. Trains the embedded checkpoint on 10,000 rows of SST-2 with
both methods, with random batches and with batches of similar length, with the same five seeds, and
prints the paired differences with their 95 % intervals. The file is written anew after each seed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from timing import environment, write_json

from masktuning.demo import EMBEDDED

SEEDS = (1, 2, 3, 4, 5)
STUDENT_T = 2.776  # the 97.5 % quantile with four degrees of freedom
METHODS = {"finetuning": [], "mask_tuning": ["--alpha", "0.1"]}
STRATEGIES = ("random", "group_by_length")
SETTINGS = (
    *("--max_train_samples", "10000", "--num_train_epochs", "1", "--learning_rate", "5e-4"),
    *("--per_device_train_batch_size", "16", "--save_strategy", "no", "--eval_strategy", "no"),
)
SETS = ("dev", "imdb_cont_dev", "imdb_cad_dev")
Runs = list[dict[str, float]]


def accuracies(data: str, method: str, strategy: str, seed: int) -> dict[str, float]:
    """The accuracy of one run of the command in per cent, by set."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "masktuning.train", "--task", "sst2", "--data_dir", data]
        command += ["--model_name_or_path", str(EMBEDDED), "--method", method, *METHODS[method]]
        command += ["--train_sampling_strategy", strategy, "--seed", str(seed), *SETTINGS]
        command += ["--output_dir", f"{folder}/run", "--disable_tqdm", "true"]
        subprocess.run(command, check=True, capture_output=True)
        results = json.loads(Path(folder, "run", "all_results.json").read_text())
    return {name: 100 * results[f"eval_{name}_accuracy"] for name in SETS}


def difference(ours: Runs, theirs: Runs, name: str) -> dict[str, float]:
    """The mean of the paired differences on a set, and half the width of its 95 % interval."""
    found = [a[name] - b[name] for a, b in zip(ours, theirs, strict=True)]
    half = STUDENT_T * statistics.stdev(found) / len(found) ** 0.5
    return {"mean": statistics.mean(found), "plus_minus": half}


def summary(runs: dict[str, dict[str, Runs]]) -> dict[str, dict[str, dict[str, float]]]:
    """By method and set, the means with both kinds of batches, and the paired difference."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for method, by_strategy in runs.items():
        random, similar = (by_strategy[strategy] for strategy in STRATEGIES)
        table[method] = {
            name: {
                "random": statistics.mean(run[name] for run in random),
                "similar_length": statistics.mean(run[name] for run in similar),
                **{f"difference_{k}": v for k, v in difference(similar, random, name).items()},
            }
            for name in SETS
        }
    return table


def main(data: str, path: str | None) -> None:
    runs: dict[str, dict[str, Runs]] = {m: {s: [] for s in STRATEGIES} for m in METHODS}
    head = {"command": "python benchmarks/similar_lengths.py DATA", **environment()}
    result = {**head, "settings": " ".join(SETTINGS), "runs": runs}
    for seed in SEEDS:
        for method, by_strategy in runs.items():
            for strategy, found in by_strategy.items():
                found.append(accuracies(data, method, strategy, seed))
        write_json(path, {**result, "seeds": SEEDS[: SEEDS.index(seed) + 1]})
    table = summary(runs)
    write_json(path, {**result, "seeds": SEEDS, "summary": table})
    for method, rows in table.items():
        for name, row in rows.items():
            change = f"{row['difference_mean']:+.2f} +- {row['difference_plus_minus']:.2f}"
            means = f"random {row['random']:.2f}, similar length {row['similar_length']:.2f}"
            print(f"{method}, {name}: {means}, difference {change}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
