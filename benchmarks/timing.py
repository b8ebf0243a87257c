"""How the benchmarks measure times and write their results."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]


def device_us(call: Call, setup: Call = lambda: None, rounds: int = 30) -> float:
    """Median microseconds between events around `call`; `setup` runs before each and is not timed.

    The device is kept busy in the meantime, so that the time the host takes does not count.
    """
    times = []
    for i in range(rounds + 3):
        setup()
        torch.cuda._sleep(2_000_000)  # in cycles; about a millisecond
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= 3:
            times.append(1e3 * start.elapsed_time(end))
    return statistics.median(times)


def graph_us(call: Call, launches: int = 100) -> float:
    """Microseconds of one call on the device, from a graph of many calls."""
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
    """bfloat16 if the GPU computes in it (sm_80 and up), else float16."""
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


@cache
def copy_bytes_per_us() -> float:
    """Bytes per microsecond that a device copy of 1 GiB reads and writes: the upper bound."""
    source = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * 2**30 / device_us(lambda: target.copy_(source))


def environment() -> dict[str, Any]:
    """Hardware, versions and commit, for a file of results."""
    facts = {
        "processor": cpu_name() or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "commit": commit(),
    }
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "cuda": torch.version.cuda,
            "triton": triton_version(),
            "driver": driver_version(),
            "copy_TB_per_s": copy_bytes_per_us() / 1e6,
        }
    return facts


def cpu_name() -> str | None:
    """The processor's model as Linux names it, or None elsewhere."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def command_line(program: str, flags: dict[str, Any]) -> str:
    """The command that was run, without its output file; of a folder only the name is kept."""
    shown = {k: Path(v).name if Path(str(v)).is_dir() else v for k, v in flags.items()}
    given = {k: v for k, v in shown.items() if k != "out" and v is not None}
    words = [f"--{name} {value}" for name, value in given.items()]
    return " ".join(["python", f"benchmarks/{Path(program).name}", *words])


def commit() -> str | None:
    """The commit of the checkout, or None without git or outside a repository."""
    if not shutil.which("git"):
        return None
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return git.stdout.strip() or None


def triton_version() -> str | None:
    if not find_spec("triton"):
        return None
    import triton

    return str(triton.__version__)


def driver_version() -> str | None:
    """The version of the NVIDIA driver, or None if it is unknown."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True).stdout.split()
    return found[0] if found else None


def write_json(path: str | Path | None, content: Any) -> None:
    """Replaces a file of results at once, so that an interrupted run leaves a complete one."""
    if path is None:
        return
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)
