"""The C++ row kernel against eager PyTorch, alternating in one process: medians of the ratios.

    python benchmarks/compare_rows.py benchmarks/results/rows_cpu.json

The work of each side is that of bench_token_substitution.py, on fresh logits every round.
Shapes: M masked positions, V vocabulary.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from bench_token_substitution import SHAPES, eager, make_rows

from masktuning.ops import cpp

ROUNDS = 40


def compare(M: int, V: int, k: int) -> dict[str, float]:
    """Median seconds of ours, eager and a copy of the same bytes, and the medians of the ratios."""
    logits, rows = make_rows(M, V)
    original, buffers = logits.clone(), (torch.empty(M, V), torch.empty(M, V))
    draw = {"banned_ids": None, "top_k": k, "temperature": 1.0}
    inputs = (rows["input_ids"], rows["positions"], rows["targets"])
    sides = (
        lambda: cpp.substitute_tokens(logits, **rows, **draw, gradient_scale=1.0),
        lambda: eager(logits, *inputs, k, buffers),
        lambda: buffers[0].copy_(logits),
    )

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
    git = ["git", "rev-parse", "--short", "HEAD"]
    result = {
        "command": "python benchmarks/compare_rows.py",
        "dtype": "float32",
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "rows": [compare(M, V, k) for M, V in SHAPES for k in (1, 8)],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
