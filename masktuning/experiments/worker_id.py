"""Names a process so that others on its machine can tell whether it still runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_SECONDS = 2.0  # by which the start of one process may differ from reading to reading


def machine() -> str:
    """A name of this machine that no other one shares, containers of one computer included."""
    parts = [platform.node()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if boot.is_file() and namespace.is_symlink():
        parts += [boot.read_text().strip()[:8], str(namespace.readlink()).strip("pid:[]")]
    return "-".join(parts)


def this_worker() -> str:
    """The machine, the process id and the start of this process."""
    return f"{machine()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_gone(worker: str) -> bool:
    """Whether a worker ran on this machine and has ended; workers elsewhere are never gone."""
    where, process, start = worker.rsplit(":", 2)
    if where != machine():
        return False
    try:
        found = psutil.Process(int(process))
        same = abs(found.create_time() - float(start)) < _SECONDS
        return not same or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
