"""The C++ row kernel against eager PyTorch, alternating in one process: medians of the ratios.

    python benchmarks/compare_rows.py benchmarks/results/rows_cpu.json

The work of each side is that of bench_token_substitution.py, on fresh logits every round.
Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from row_work import implementations, make_rows
from timing import environment

SHAPES = [(102, 30522), (512, 50265)]
ROUNDS = 40


def compare(M: int, V: int, k: int) -> dict[str, float]:
    """Median seconds of ours, eager and a copy of the same bytes, and the medians of the ratios."""
    logits, rows = make_rows(M, V)
    original = logits.clone()
    work = implementations(logits, rows, k, peers=False)
    sides = [work[name] for name in ("cpp", "eager", "copy")]

    def seconds(side):
        logits.copy_(original)
        start = time.perf_counter()
        side()
        return time.perf_counter() - start

    for side in sides:
        seconds(side)
    rounds = [[seconds(side) for side in sides] for _ in range(ROUNDS)]
    ours, theirs, copy = (statistics.median(r[i] for r in rounds) for i in range(3))
    return {
        "M": M,
        "V": V,
        "k": k,
        "ours_ms": 1e3 * ours,
        "eager_ms": 1e3 * theirs,
        "copy_ms": 1e3 * copy,
        "eager_over_ours": statistics.median(r[1] / r[0] for r in rounds),
        "ours_over_copy": statistics.median(r[0] / r[2] for r in rounds),
    }


if __name__ == "__main__":
    result = {
        "command": "python benchmarks/compare_rows.py",
        "dtype": "float32",
        **environment(),
        "rows": [compare(M, V, k) for M, V in SHAPES for k in (1, 8)],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
