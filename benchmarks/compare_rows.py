"""Compares the C++ row kernel with eager PyTorch, alternating in one process.

    python benchmarks/compare_rows.py benchmarks/results/rows_cpu.json

The work of each side is that of bench_token_substitution.py, on restored logits in every round. Our
kernel runs with several numbers of banned ids, eager PyTorch with the four of BERT and RoBERTa.
Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from row_work import SPECIAL, Call, implementations, make_rows
from timing import environment, write_json

SHAPES = [(102, 30522), (512, 50265)]
BANNED = (0, SPECIAL, 100, 900)
ROUNDS = 40


def compare(M: int, V: int, k: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of our kernel, eager PyTorch and a copy, and medians of the ratios."""
    logits, rows = make_rows(M, V)
    original = logits.clone()
    work = implementations(logits, rows, k)
    sides = {"eager": work["eager"], "copy": work["copy"]}
    for banned in BANNED:
        rows = make_rows(M, V, banned=banned)[1]  # the same rows with other banned ids
        sides[f"{banned} banned"] = implementations(logits, rows, k)["cpp"]

    def seconds(side: Call) -> float:
        logits.copy_(original)
        start = time.perf_counter()
        side()
        return time.perf_counter() - start

    for side in sides.values():
        seconds(side)
    times = [{name: seconds(side) for name, side in sides.items()} for _ in range(rounds)]

    def ratio(over: str, under: str) -> float:
        return statistics.median(each[over] / each[under] for each in times)

    ours = f"{SPECIAL} banned"
    return {
        "M": M,
        "V": V,
        "k": k,
        "ours_ms": 1e3 * statistics.median(each[ours] for each in times),
        "eager_ms": 1e3 * statistics.median(each["eager"] for each in times),
        "copy_ms": 1e3 * statistics.median(each["copy"] for each in times),
        "eager_over_ours": ratio("eager", ours),
        "ours_over_copy": ratio(ours, "copy"),
        "banned_over_none": {str(n): ratio(f"{n} banned", "0 banned") for n in BANNED if n},
    }


if __name__ == "__main__":
    result = {
        "command": "python benchmarks/compare_rows.py",
        "dtype": "float32",
        **environment(),
        "rows": [compare(M, V, k, ROUNDS) for M, V in SHAPES for k in (1, 8)],
    }
    print(json.dumps(result, indent=1))
    write_json(sys.argv[1] if len(sys.argv) > 1 else None, result)
