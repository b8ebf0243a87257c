"""Measures every op on a GPU, and compares the results with what was promised for them.

    python benchmarks/compare_gpu.py benchmarks/results/gpu.json            # ours and eager PyTorch
    python benchmarks/compare_gpu.py --peers benchmarks/results/peers.json  # and other packages

Times are medians between device events. The logits are restored before each round, as a matrix
product would leave them. There is a bias, and the four banned ids of BERT and RoBERTa unless a row
of the table says otherwise. Bytes are one read and one write of the logits; the share is that of a
device copy of 1 GiB. What matters most and needs no compiling comes first. The file is written
again after each row, so that a run which is interrupted leaves its results.
Shapes: B examples, L tokens, C classes, M masked positions, V vocabulary.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent))
from row_peers import peers
from row_work import SPECIAL, Call, implementations, make_rows
from timing import (
    copy_bytes_per_us,
    device_us,
    environment,
    graph_us,
    half_dtype,
    host_us,
    write_json,
)

from masktuning.ops import backends, dual_cross_entropy, sample_masks

ROUNDS = 10
V_BERT, V_ROBERTA = 30522, 50265


class Shape(NamedTuple):
    """One row of the table."""

    M: int
    V: int
    k: int
    dtype: torch.dtype
    banned: int = SPECIAL

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"M={self.M} V={self.V} k={self.k} {kind} {self.banned} banned"


def shapes() -> list[Shape]:
    """The rows of the table, the most informative first."""
    half, vocabularies, ks = half_dtype(), (V_BERT, V_ROBERTA), (1, 8)
    usual = [Shape(M, V, k, half) for M in (3270, 800) for V in vocabularies for k in ks]
    banned = [
        Shape(M, V, k, half, banned)
        for M, V in ((3270, V_ROBERTA), (800, V_BERT))
        for k in ks
        for banned in (0, 100, 900)
    ]
    few = [Shape(M, V, k, half) for M in (205, 102, 64) for V in vocabularies for k in ks]
    wide = [
        Shape(M, V, k, torch.float32) for M in (3270, 800, 102) for V in vocabularies for k in ks
    ]
    return usual + few + banned + wide


def measure(shape: Shape, sides: Callable[..., dict[str, Call]], row: dict[str, Any]) -> None:
    """Adds the time and the share of the copy bandwidth of each side to a row of the table."""
    logits, rows = make_rows(shape.M, shape.V, shape.dtype, "cuda", shape.banned)
    original = logits.clone()
    for name, call in sides(logits, rows, shape.k).items():
        us = device_us(call, lambda: logits.copy_(original), ROUNDS)
        row["us"][name] = us
        row["share"][name] = row["bytes"] / us / copy_bytes_per_us()


def new_row(shape: Shape) -> dict[str, Any]:
    facts = shape._asdict() | {"dtype": str(shape.dtype), "bias": True}
    return facts | {"bytes": 2 * shape.dtype.itemsize * shape.M * shape.V, "us": {}, "share": {}}


def only(*wanted: str) -> Callable[..., dict[str, Call]]:
    """Selects the implementations with the given names that are available."""

    def sides(*arguments: Any) -> dict[str, Call]:
        found = implementations(*arguments)
        return {name: found[name] for name in wanted if name in found}

    return sides


def small_ops(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Device and host time of one call of the other ops on each back end."""
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
    for name in names:
        if backends.available()[name]:
            continue
        with backends.use(name):
            for op, call in calls.items():
                each = {"device_us": graph_us(call), "host_us": host_us(call)}
                results.append({"op": op, "backend": name, "B": B, "L": L, "M": M, **each})
    return results


def bars(table: list[dict[str, Any]], small: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares what was measured with what was promised."""
    found = []

    def bar(what: str, measured: float, wanted: float, at_least: bool) -> None:
        met = measured >= wanted if at_least else measured <= wanted
        row = {"what": what, "measured": measured, "bar": wanted, "met": met}
        found.append(row | {"sense": "at least" if at_least else "at most"})

    for row in table:
        name, us = f"M={row['M']} V={row['V']} k={row['k']}", row["us"]
        promised = row["dtype"] != str(torch.float32) and row["banned"] == SPECIAL
        if "cuda" not in us or not promised:
            continue
        if row["M"] in (800, 3270):
            wanted = 0.8 if row["M"] == 800 else 0.9
            bar(f"share of copy, {name}", row["share"]["cuda"], wanted, True)
            if "cuda, no choice" in us:
                ratio = us["cuda"] / us["cuda, no choice"]
                bar(f"with / without choice, {name}", ratio, 1.05, False)
            if "eager" in us:
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


def print_row(shape: Shape, row: dict[str, Any]) -> None:
    print(f"{shape}, {row['bytes']} bytes")
    for name, us in row["us"].items():
        print(f"  {name:18s}{us:10.1f} us  {100 * row['share'][name]:5.1f} % of copy", flush=True)


def run(path: str | None, with_peers: bool) -> None:
    """Measures pass by pass, and writes the file after each row."""
    if with_peers:
        cuda_and_peers = [only("cuda"), peers]
        wanted = [shape for shape in shapes() if shape.M >= 800 and shape.banned == SPECIAL][:8]
        passes = [(cuda_and_peers, ())]
    else:
        wanted = shapes()
        passes = [
            ([only("copy", "cuda", "cuda, no choice", "eager")], ("cuda", "reference")),
            ([only("triton")], ("triton",)),
        ]
    table = {shape: new_row(shape) for shape in wanted}
    result: dict[str, Any] = {"environment": environment(), "rows": [], "small": [], "bars": []}

    def keep() -> None:
        result["rows"] = [row for row in table.values() if row["us"]]
        result["bars"] = bars(result["rows"], result["small"])
        write_json(path, result)

    for sides, names in passes:
        for shape, row in table.items():
            for side in sides:
                measure(shape, side, row)
            keep()
            print_row(shape, row)
        result["small"] += small_ops(names)
        keep()
    for row in result["small"]:
        print(f"{row['op']} {row['backend']}: {row['device_us']:.1f} us, host {row['host_us']:.1f}")
    for row in result["bars"]:
        met = "met   " if row["met"] else "MISSED"
        print(f"{met} {row['what']}: {row['measured']:.3g} ({row['sense']} {row['bar']})")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("compare_gpu.py needs an NVIDIA GPU")
    arguments = [word for word in sys.argv[1:] if word != "--peers"]
    run(arguments[0] if arguments else None, with_peers="--peers" in sys.argv)
