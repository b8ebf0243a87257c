"""Runs train_tiny.py in one or several processes, and compares two runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parent / "train_tiny.py"
# Two processes on this machine, on a free port.
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    *("accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"),
    *("--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"),
]
# Terms that the optimiser step is made of; the last two are measured apart.
TERMS = ("loss", "grad_norm", "loss_mlm", "loss_cls", "grad_norm_mlm", "grad_norm_cls")
# SGD shows a gradient of the wrong size, and leaves one of rounding noise small; Adam does neither.
SGD = {"optim": "sgd", "learning_rate": 0.05, "num_train_epochs": 2}


def run_script(folder, launcher=(), expect=0, **options):
    """The result of tests/training/train_tiny.py in a process of its own, or in a launcher's."""
    options = {"out": str(folder / "result.json"), "output_dir": str(folder / "run"), **options}
    command = [sys.executable, *(["-m", *launcher] if launcher else [])]
    command += [str(SCRIPT), json.dumps(options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr[-3000:]
    if expect:
        return {}
    # One file for each process; an example's masks are in that of the process that had it.
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("result.json*"))]
    masks = {}
    for result in results:
        masks.update(result["masks"])
    return {**results[0], "masks": masks}


def assert_same_steps(a, b, tolerance=1e-4, terms=TERMS, sometimes=()):
    """`sometimes` are terms that both runs may lack in some of their steps."""
    assert len(a["logs"]) == len(b["logs"]) > 0
    for one, other in zip(a["logs"], b["logs"], strict=True):
        absent = {term for term in sometimes if term not in one and term not in other}
        for term in set(terms) - absent:
            assert one[term] == pytest.approx(other[term], rel=tolerance), (one["step"], term)
    np.testing.assert_allclose(a["weights"], b["weights"], rtol=1e-5, atol=1e-5)
