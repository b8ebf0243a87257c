"""The energy that the processor and the GPU have used, where the machine has a readable counter.

On Linux the processor's counters (RAPL) are files, which often only root may read. NVML, a library
of NVIDIA's driver, has the counter of GPUs from the V100 on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

POWERCAP = Path("/sys/class/powercap")


class Counter(NamedTuple):
    """Joules since some time in the past."""

    name: str
    read: Callable[[], float]
    wraps_at: float
    """Joules at which it starts from 0 again."""


def counters(powercap: Path = POWERCAP) -> list[Counter]:
    """The counters of this machine; most virtual machines have none."""
    found = [counter for zone in sorted(powercap.glob("*-rapl:*")) for counter in _package(zone)]
    return found + (_gpu() if torch.cuda.is_available() else [])


def readings(of: list[Counter]) -> list[float]:
    """What each counter shows now."""
    return [counter.read() for counter in of]


def joules_since(before: list[float], of: list[Counter]) -> dict[str, float]:
    """What has been used since `before`, by the names of the counters."""
    return {
        counter.name: (now - then) % counter.wraps_at
        for counter, then, now in zip(of, before, readings(of), strict=True)
    }


def _package(zone: Path) -> list[Counter]:
    """The counter of one processor; zones within it (cores, memory) have a second colon."""
    energy = zone / "energy_uj"
    if zone.name.count(":") != 1:
        return []
    try:
        energy.read_text()
    except OSError:  # for root only
        return []
    name = (zone / "name").read_text().strip()
    limit = int((zone / "max_energy_range_uj").read_text())
    return [Counter(f"{name} (RAPL)", lambda: int(energy.read_text()) / 1e6, limit / 1e6)]


def _gpu() -> list[Counter]:
    """The counter of the current GPU."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:  # not there, as on WSL
        return []
    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    device, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    def status() -> int:
        return nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))

    def read() -> float:
        if code := status():
            raise RuntimeError(f"NVML's energy counter failed with code {code}")
        return millijoules.value / 1e3

    found = nvml.nvmlInit_v2() == 0
    found = found and nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(device)) == 0
    return [Counter("gpu (NVML)", read, 2**64 / 1e3)] if found and status() == 0 else []
