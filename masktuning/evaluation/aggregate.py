"""Results of several seeds: mean, standard deviation, and paired differences to a baseline."""

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
COMBINED_RESULTS = "combined.json"
_FILES = (EVALUATION_RESULTS, RUN_RESULTS)
_ENDINGS = ("_accuracy", "_accuracy_sum", "_f1", "_consistency")

Metrics = dict[str, float]


def combine(folders: list[str], baseline: list[str], output_dir: str | None) -> str:
    """A table, in per cent, of the metrics that all folders have; one folder per seed.

    Differences are those between folder i of `folders` and folder i of `baseline`, if that is
    given. Standard deviations are those of a sample. With `output_dir` the figures are also
    written there, as combined.json.

    Raises:
        UsageError: if a folder holds no results, there are fewer than two folders, the two lists
            differ in length, or no metric is in all of the folders.
    """
    if len(folders) < 2:
        raise UsageError("--combine takes two folders or more, one per seed")
    if baseline and len(baseline) != len(folders):
        raise UsageError(f"--baseline must name as many folders as --combine: {len(folders)}")
    runs = [_read(folder) for folder in folders]
    others = [_read(folder) for folder in baseline]
    names, skipped = _common(runs + others)
    metrics = {name: _combined(name, runs, others) for name in names}
    if output_dir:
        table = {"combine": folders, "baseline": baseline, "metrics": metrics}
        write_json(Path(output_dir) / COMBINED_RESULTS, table)
    note = f"\nskipped, since not all of these have them: {', '.join(skipped)}" if skipped else ""
    return _table(metrics, bool(baseline)) + note


def _common(runs: list[Metrics]) -> tuple[list[str], list[str]]:
    """The scores that all runs have, in the first one's order, and those that only some have."""
    names = [n for n in runs[0] if _is_score(n) and all(n in run for run in runs)]
    if not names:
        raise UsageError("no set was measured in all of these")
    scores = {name for run in runs for name in run if _is_score(name)}
    return names, sorted(name.removeprefix("eval_") for name in scores - set(names))


def _is_score(name: str) -> bool:
    """Whether a metric is a score on a set, rather than one of training."""
    return name.startswith("eval_") and name.endswith(_ENDINGS)


def _combined(name: str, runs: list[Metrics], others: list[Metrics]) -> dict[str, Any]:
    """One metric over the seeds, in per cent, and its difference to the baseline's runs."""
    values = [100 * run[name] for run in runs]
    combined: dict[str, Any] = {"values": values, **_mean_and_sd(values)}
    if others:
        base = [100 * run[name] for run in others]
        combined["baseline"] = {"values": base, **_mean_and_sd(base)}
        pairs = zip(values, base, strict=True)
        combined["difference"] = _mean_and_sd([ours - theirs for ours, theirs in pairs])
    return combined


def _table(metrics: dict[str, dict[str, Any]], has_baseline: bool) -> str:
    header = ["metric", "mean", "sd"]
    if has_baseline:
        header += ["baseline", "difference", "its sd"]
    rows = [tuple(header)]
    for name, one in metrics.items():
        row = [name.removeprefix("eval_"), f"{one['mean']:.2f}", f"{one['sd']:.2f}"]
        if has_baseline:
            difference = one["difference"]
            row += [f"{one['baseline']['mean']:.2f}"]
            row += [f"{difference['mean']:+.2f}", f"{difference['sd']:.2f}"]
        rows.append(tuple(row))
    return aligned(rows)


def _mean_and_sd(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values)}


def _read(folder: str) -> Metrics:
    """The metrics in a folder's results.json or all_results.json."""
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
