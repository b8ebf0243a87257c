"""Every op on a GPU beside the bars it is meant to clear; the table is printed whatever it says.

    python benchmarks/compare_gpu.py benchmarks/results/gpu.json

Rows: device events, median, logits restored before each round (as a matrix product would leave
them). Bytes are one read and one write of the logits; the share is of a 1 GiB device copy.
Shapes: B examples, L tokens, C classes, M masked positions, V vocabulary.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from row_work import implementations, make_rows
from timing import copy_bytes_per_us, device_us, environment, graph_us, half_dtype, host_us

from masktuning.ops import backend, dual_cross_entropy, sample_masks


def rows_table(M: int, V: int, k: int, dtype: torch.dtype) -> dict[str, Any]:
    """Microseconds by implementation, and the share of the copy bandwidth."""
    logits, rows = make_rows(M, V, dtype, "cuda")
    original = logits.clone()
    work = implementations(logits, rows, k)
    us = {name: device_us(call, lambda: logits.copy_(original)) for name, call in work.items()}
    moved = 2 * logits.itemsize * M * V
    share = {name: moved / t / copy_bytes_per_us() for name, t in us.items()}
    return {"M": M, "V": V, "k": k, "dtype": str(dtype), "bytes": moved, "us": us, "share": share}


def small_ops() -> list[dict[str, Any]]:
    """Mask sampling and the dual loss: device and host time of one call."""
    B, L, C = 32, 128, 2
    lengths_B = torch.randint(L // 2, L + 1, (B,))
    counts_B = ((lengths_B * round(0.05 * 2**32) + 2**31) >> 32).clamp(min=1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_B.cumsum(0)])
    M = int(offsets[-1])
    masks = (
        torch.randint(5, 30000, (B, L)),
        torch.arange(L) < lengths_B[:, None],
        torch.arange(B),
        offsets,
        torch.tensor([0, 0]),
    )
    masks = tuple(tensor.cuda() for tensor in masks)
    losses, logits = torch.rand(M).cuda(), torch.randn(B, C).cuda()
    labels, counts = torch.zeros(B, dtype=torch.int64).cuda(), torch.tensor([M, B]).float().cuda()
    calls = {
        "sample_masks": lambda: sample_masks(*masks, M, 4),
        "dual_cross_entropy": lambda: dual_cross_entropy(losses, logits, labels, counts, 0.3),
    }
    results = []
    for name in ("cuda", "triton", "reference"):
        if backend.available()[name]:
            continue
        with backend.use(name):
            for op, call in calls.items():
                each = {"device_us": graph_us(call), "host_us": host_us(call)}
                results.append({"op": op, "backend": name, "B": B, "L": L, "M": M, **each})
    return results


def bars(table: list[dict[str, Any]], small: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was promised beside what was measured."""
    found = []

    def bar(what: str, measured: float, wanted: float, at_least: bool) -> None:
        met = measured >= wanted if at_least else measured <= wanted
        row = {"what": what, "measured": measured, "bar": wanted, "met": met}
        found.append(row | {"sense": "at least" if at_least else "at most"})

    for row in table:
        name, us = f"M={row['M']} V={row['V']} k={row['k']}", row["us"]
        if "cuda" not in us:
            continue
        if row["M"] in (800, 3270):
            wanted = 0.8 if row["M"] == 800 else 0.9
            bar(f"share of copy, {name}", row["share"]["cuda"], wanted, True)
            bar(f"with / without choice, {name}", us["cuda"] / us["cuda, no choice"], 1.05, False)
            bar(f"eager / ours, {name}", us["eager"] / us["cuda"], 8.0, True)
            if "liger" in us:
                bar(f"liger + topk / ours, {name}", us["liger"] / us["cuda"], 2.5, True)
        elif row["M"] == 205:
            bar(f"microseconds, {name}", us["cuda"], 8.0, False)
    limits = {"sample_masks": 5.0, "dual_cross_entropy": 3.0}
    for row in small:
        if row["backend"] == "cuda":
            bar(f"device microseconds, {row['op']}", row["device_us"], limits[row["op"]], False)
    return found


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("compare_gpu.py needs an NVIDIA GPU")
    facts = environment()
    table = [
        rows_table(M, V, k, half_dtype())
        for M in (64, 205, 800, 3270)
        for V in (30522, 50265)
        for k in (1, 8)
    ]
    small = small_ops()
    result = {"environment": facts, "rows": table, "small": small, "bars": bars(table, small)}
    text = json.dumps(result, indent=1)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text + "\n")
    for row in table:
        print(f"M={row['M']} V={row['V']} k={row['k']} {row['dtype']}, {row['bytes']} bytes")
        for name, us in row["us"].items():
            print(f"  {name:18s}{us:10.1f} us  {100 * row['share'][name]:5.1f} % of copy")
    for row in small:
        print(f"{row['op']} {row['backend']}: {row['device_us']:.1f} us, host {row['host_us']:.1f}")
    for row in result["bars"]:
        met = "met   " if row["met"] else "MISSED"
        print(f"{met} {row['what']}: {row['measured']:.3g} ({row['sense']} {row['bar']})")
