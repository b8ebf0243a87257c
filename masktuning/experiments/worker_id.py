"""Names a process so that others on its machine can tell whether it still runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

_SECONDS = 2.0  # by which the start of one process may differ from reading to reading


def machine() -> str:
    """A name of this machine that stays the same when it is started again."""
    file = Path("/etc/machine-id")
    own = file.read_text(encoding="utf-8").strip()[:8] if file.is_file() else ""
    return f"{platform.node()}-{own}" if own else platform.node()


def this_worker() -> str:
    """The machine, its start, the process id and the start of this process."""
    return f"{machine()}:{_start()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def is_gone(worker: str) -> bool:
    """Whether a worker ran on this machine and has ended; workers elsewhere are never gone."""
    if not worker:
        return False  # a trial that was taken and not signed yet
    where, start, process, began = worker.rsplit(":", 3)
    if where != machine():
        return False
    boot, _, namespace = start.partition("/")
    own_boot, _, own_namespace = _start().partition("/")
    if boot != own_boot:
        return True  # the machine was started again since
    if namespace != own_namespace:
        return False  # another container of this machine, whose processes cannot be seen
    try:
        found = psutil.Process(int(process))
        same = abs(found.create_time() - float(began)) < _SECONDS
        return not same or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _start() -> str:
    """What tells apart the starts of a machine and the containers on it, where Linux says so."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    parts = [
        boot.read_text(encoding="utf-8").strip()[:8] if boot.is_file() else "",
        str(namespace.readlink()).strip("pid:[]") if namespace.is_symlink() else "",
    ]
    return "/".join(parts)
