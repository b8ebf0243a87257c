"""What the demo's tasks gave over several seeds, as benchmarks/demo_seeds.py recorded it."""

from __future__ import annotations

import json
from pathlib import Path

FILE = Path(__file__).parent / "seeds.json"
"""By task, a list of records: threads, seeds, and runs with accuracies by method and set."""


def recorded_text(task: str) -> str:
    """A line per method with its lowest and highest accuracies; "" if none were recorded."""
    records = json.loads(FILE.read_text(encoding="utf-8")).get(task)
    if not records:
        return ""
    runs = [run for record in records for run in record["runs"]]
    seeds = {seed for record in records for seed in record["seeds"]}
    threads = " and ".join(str(record["threads"]) for record in records)
    methods, sets = runs[0], next(iter(runs[0].values()))
    found = [
        f"  {method}: " + ", ".join(f"{name} {_range(runs, method, name)}" for name in sets)
        for method in methods
    ]
    first = (
        f"This is one seed. Over {len(seeds)} seeds, recorded with the settings of {task} on "
        f"{threads} thread{'s' * (threads != '1')}:"
    )
    return "\n".join((first, *found))


def _range(runs: list[dict[str, dict[str, float]]], method: str, name: str) -> str:
    values = [run[method][name] for run in runs]
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"
