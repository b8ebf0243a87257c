"""How the GPU benchmarks take their times: device events, medians, a graph for what is short."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

Call = Callable[[], Any]


def device_us(call: Call, setup: Call = lambda: None, rounds: int = 30) -> float:
    """Median microseconds between events around `call`; `setup` runs before each, untimed.

    The device is kept busy meanwhile, so that the host's time to start `call` does not show.
    """
    times = []
    for i in range(rounds + 3):
        setup()
        torch.cuda._sleep(2_000_000)  # cycles, about a millisecond
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def graph_us(call: Call, launches: int = 100) -> float:
    """Microseconds of one call on the device: a graph of many, divided by their number."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            call()
    return device_us(graph.replay) / launches


def host_us(call: Call, calls: int = 200) -> float:
    """Microseconds that the host needs to start one call."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * elapsed / calls


def half_dtype() -> torch.dtype:
    """bfloat16 where the GPU computes in it (sm_80 and up), else float16."""
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


@cache
def copy_bytes_per_us() -> float:
    """Bytes read and written a microsecond by a device copy of 1 GiB: the ceiling here."""
    source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / device_us(lambda: target.copy_(source))


def environment() -> dict[str, Any]:
    """Hardware, versions and commit, for the head of a results file."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    facts = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": git.stdout.strip() or None,
    }
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "triton": version("triton") if find_spec("triton") else None,
            "copy_TB_per_s": copy_bytes_per_us() / 1e6,
        }
    return facts
