"""Results of several seeds as mean and standard deviation, and paired differences."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.files import write_json
from masktuning.evaluation.tables import aligned

EVALUATION_RESULTS = "results.json"
RUN_RESULTS = "all_results.json"
_FILES = (EVALUATION_RESULTS, RUN_RESULTS)
_ENDINGS = ("_accuracy", "_accuracy_sum", "_f1", "_consistency")


def combine(folders: list[str], against: list[str], output_dir: str | None) -> str:
    """The table, in per cent; also written to `output_dir` as combined.json, if that is given.

    The standard deviation is the sample's. Differences are those of the runs in the same place
    of both lists.

    Raises:
        UsageError: if a folder holds no results, there are fewer than two, the two lists differ
            in length, or no metric is in all of them.
    """
    if len(folders) < 2:
        raise UsageError("--combine takes two folders or more, one a seed")
    if against and len(against) != len(folders):
        raise UsageError(f"--against must be as many as --combine: {len(folders)}")
    runs = [_read(folder) for folder in folders]
    others = [_read(folder) for folder in against]
    names = [n for n in runs[0] if n.endswith(_ENDINGS) and all(n in r for r in [*runs, *others])]
    if not names:
        raise UsageError("no set was measured in all of these")
    rows = [("metric", "mean", "sd", *(("against", "difference", "its sd") if against else ()))]
    table: dict[str, Any] = {"combine": folders, "against": against, "metrics": {}}
    for name in names:
        values = [100 * run[name] for run in runs]
        cells = {"values": values, **_summary(values)}
        row = [name.removeprefix("eval_"), f"{cells['mean']:.2f}", f"{cells['sd']:.2f}"]
        if against:
            base = [100 * run[name] for run in others]
            difference = _summary([a - b for a, b in zip(values, base, strict=True)])
            cells |= {"against": {"values": base, **_summary(base)}, "difference": difference}
            row += [f"{statistics.mean(base):.2f}"]
            row += [f"{difference['mean']:+.2f}", f"{difference['sd']:.2f}"]
        rows.append(tuple(row))
        table["metrics"][name] = cells
    if output_dir:
        write_json(Path(output_dir) / "combined.json", table)
    scores = {n for run in [*runs, *others] for n in run if n.endswith(_ENDINGS)}
    left_out = sorted(name.removeprefix("eval_") for name in scores - set(names))
    note = f"\nnot in all of these, and left out: {', '.join(left_out)}" if left_out else ""
    return aligned(rows) + note


def _summary(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def _read(folder: str) -> dict[str, float]:
    path = next((Path(folder) / n for n in _FILES if (Path(folder) / n).is_file()), None)
    if path is None:
        raise UsageError(f"{folder}: holds neither {' nor '.join(_FILES)}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path}: not a mapping of names to figures")
    return {name: value for name, value in found.items() if isinstance(value, float | int)}
