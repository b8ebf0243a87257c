"""Collects what gpu_check.sh has written so far into summary.json and logs.tar.gz.

    python benchmarks/gpu_summary.py LOGS_FOLDER OUTPUT_FOLDER

LOGS_FOLDER holds NAME.log and NAME.xml of the steps, machine.json, and steps.tsv with one line per
step: name, exit status, seconds. This uses only the standard library, so that there is a summary
whatever has failed.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

TAIL = 15
"""How many lines the summary shows from the end of the log of a failed step."""


def summarise(logs: Path) -> dict[str, Any]:
    """The machine, the outcomes of the steps, missed targets, and the ends of logs of failures."""
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
    # Files are completed and then moved: if this is killed, the previous ones remain.
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
