"""The throughput of our trainer in one process and in several (DDP), one thread each.

    python benchmarks/bench_processes.py result.json --processes 2 --model bert-4x256 --rows 2000

Starts bench_epoch.py by itself and under torchrun, in turns; on a CPU the processes communicate
through gloo. The batch is the same whatever the number of processes, so that they take the same
steps, and so is the number of rows of each round. Scaling is the median ratio of the examples per
second to those of one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from timing import command_line, environment, write_json

EPOCH = Path(__file__).with_name("bench_epoch.py")
OURS = "e,f"
Rates = dict[str, float]


def read_flags() -> tuple[argparse.Namespace, list[str]]:
    """The flags of this program, and those that bench_epoch.py is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_known_args()


def examples_per_second(processes: int, words: list[str], folder: str) -> Rates:
    """By contender, as one run of bench_epoch.py measured it."""
    out = Path(folder) / "epoch.json"
    launcher = [sys.executable]
    if processes > 1:
        distributed = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += ["-m", *distributed]
    chosen = ["--contenders", OURS, "--rounds", "1", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, str(EPOCH), str(out), *chosen], env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise SystemExit(f"bench_epoch.py in {processes} processes:\n{done.stderr[-3000:]}")
    table = json.loads(out.read_text())["contenders"]
    return {name: row["examples_per_s"] for name, row in table.items()}


def summary(single: list[Rates], several: list[Rates], processes: int) -> dict[str, Rates]:
    """The row of each contender: median rates, and the median of the rounds' ratios."""
    return {
        name: {
            "examples_per_s, 1": statistics.median(rates[name] for rates in single),
            f"examples_per_s, {processes}": statistics.median(rates[name] for rates in several),
            "scaling": statistics.median(
                more[name] / one[name] for one, more in zip(single, several, strict=True)
            ),
        }
        for name in single[0]
    }


def main() -> None:
    flags, words = read_flags()
    shown = [Path(word).name if Path(word).is_dir() else word for word in words]
    command = " ".join([command_line(__file__, vars(flags)), *shown])
    result: dict[str, Any] = {"command": command, "environment": environment()}
    single: list[Rates] = []
    several: list[Rates] = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(flags.rounds):
            single.append(examples_per_second(1, words, folder))
            several.append(examples_per_second(flags.processes, words, folder))
            table = summary(single, several, flags.processes)
            write_json(flags.out, {**result, "rounds": len(single), "contenders": table})
    for name, row in table.items():
        print(f"{name:30s}", *(f"{key} {value:.2f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
