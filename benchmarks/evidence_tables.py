"""The tables of docs/evidence.md, from the files that evidence.py writes.

    python benchmarks/evidence_tables.py benchmarks/results/evidence_sst2_2000.json ...

For each file one table: a line per setting with its mean accuracy on every set, and in brackets the
mean of its paired differences to plain fine-tuning with the half width of their 95 % interval
(Student's t over the seeds). Only seeds for which both runs are there count.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from evidence import PLAIN
from scipy.stats import t

Runs = dict[int, dict[str, float]]


def by_setting(runs: dict[str, Any]) -> dict[str, Runs]:
    """The accuracies by setting and seed."""
    found: dict[str, Runs] = {}
    for name, run in runs.items():
        setting, _, seed = name.rpartition("; seed ")
        found.setdefault(setting, {})[int(seed)] = run["accuracy"]
    return found


def half_width(differences: list[float]) -> float | None:
    """Half of the 95 % interval of a mean, which takes two values at least."""
    n = len(differences)
    if n < 2:
        return None
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5


def cell(ours: Runs, plain: Runs, name: str) -> str:
    """Mean accuracy on a set (mean paired difference ± half width)."""
    mean = statistics.mean(run[name] for run in ours.values())
    pairs = [ours[seed][name] - plain[seed][name] for seed in ours if seed in plain]
    if ours is plain or not pairs:
        return f"{mean:.1f}"
    width = half_width(pairs)
    shown = "" if width is None else f" ± {width:.1f}"
    return f"{mean:.1f} ({statistics.mean(pairs):+.1f}{shown})"


def table(result: dict[str, Any]) -> str:
    """A Markdown table of one file."""
    found = by_setting(result["runs"])
    plain = found[PLAIN]
    sets = list(next(iter(plain.values())))
    lines = [f"| setting | seeds | {' | '.join(sets)} |", "|---" * (len(sets) + 2) + "|"]
    for setting, runs in found.items():
        cells = " | ".join(cell(runs, plain, name) for name in sets)
        lines.append(f"| {setting} | {len(runs)} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for path in sys.argv[1:]:
        content = json.loads(Path(path).read_text())
        print(f"{content['command']} ({content['flags']})\n\n{table(content)}\n")
