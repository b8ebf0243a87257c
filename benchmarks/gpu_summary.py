"""Gathers what gpu_check.sh has left so far into summary.json and logs.tar.gz.

    python benchmarks/gpu_summary.py LOGS_FOLDER OUTPUT_FOLDER

LOGS_FOLDER holds NAME.log and NAME.xml of the steps, machine.json, and steps.tsv with a line a
step: name, exit status, seconds. Nothing but the standard library is used, so that a summary is
there whatever failed.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

TAIL = 15
"""How many last lines of a failed step's log the summary shows."""


def summarise(logs: Path) -> dict[str, Any]:
    """The machine, each step's end, the missed bars, and the end of each failed step's log."""
    machine = logs / "machine.json"
    steps = []
    for line in (logs / "steps.tsv").read_text().splitlines():
        name, code, seconds = line.split("\t")
        steps.append({"name": name, "exit": int(code), "seconds": int(seconds)})
    lines = {step["name"]: _lines(logs / f"{step['name']}.log") for step in steps}
    return {
        "machine": json.loads(machine.read_text()) if machine.is_file() else None,
        "steps": steps,
        "missed": [line for log in lines.values() for line in log if line.startswith("MISSED")],
        "last_lines": {
            step["name"]: lines[step["name"]][-TAIL:] for step in steps if step["exit"] != 0
        },
    }


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.is_file() else []


def main(logs: Path, out: Path) -> None:
    # Whole and then moved: a check that is killed here leaves the previous ones.
    archive = out / ".logs.partial"
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted([*logs.glob("*.log"), *logs.glob("*.xml")]):
            tar.add(path, path.name)
    os.replace(archive, out / "logs.tar.gz")
    whole = out / ".summary.partial"
    whole.write_text(json.dumps(summarise(logs), indent=1) + "\n")
    os.replace(whole, out / "summary.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
