"""Runs `masktuning.train` many times, each in a fork of a process with the libraries imported.

python tests/training/command_server.py

Each line of its input is a JSON object: "argv", the words of the command; "kill_at", the number of
optimizer steps, over all trainings of the command, after which it ends as in a power cut; "port",
by which two processes find each other. The answer is a line with the exit code, negative for a
signal. What the command printed is in the file "log".
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

import datasets  # noqa: F401
import torch  # noqa: F401
import transformers.trainer as trainer_module

import masktuning
from masktuning.config.errors import UsageError

masktuning.MaskTuningTrainer  # noqa: B018  (imported on first use)


def command(job: dict[str, Any]) -> None:
    """Runs the command of a job in this process, which is one of its own."""
    signal.alarm(240)
    descriptor = os.open(job["log"], os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if kill_at := job.get("kill_at"):
        step_end, steps = trainer_module.CallbackHandler.on_step_end, [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            steps[0] += 1
            if steps[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return step_end(*args, **kwargs)

        trainer_module.CallbackHandler.on_step_end = counted
    from masktuning.train import main

    try:
        main(job["argv"])
    except UsageError as error:
        print(f"error: {error}", flush=True)
        os._exit(2)
    sys.stdout.flush()


def in_forks(job: dict[str, Any]) -> int:
    """The exit code of the command, from one process or from the ranks of a group of two."""
    children = []
    ranks = range(2) if "port" in job else [None]
    for rank in ranks:
        if (child := os.fork()) == 0:
            if rank is not None:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": job["port"]}
                os.environ.update({name: str(value) for name, value in place.items()})
            try:
                command(job)
            except BaseException:
                sys.excepthook(*sys.exc_info())  # otherwise the fork would read the next job
                os._exit(1)
            os._exit(0)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    print("ready", flush=True)
    for line in sys.stdin:
        print(in_forks(json.loads(line)), flush=True)
