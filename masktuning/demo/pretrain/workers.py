"""The processes of a pretraining run: one, or several under torchrun that share each batch.

On a CPU, two processes of one thread are faster than one process of two threads: layers as narrow
as these have too little work for two threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_TIMEOUT = timedelta(hours=12)  # the others wait while the first process prepares the corpus


class Workers:
    """This process's rank among those that torchrun started; the only process without torchrun."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if self.count > 1 and not dist.is_initialized():
            kind = "nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(kind, timeout=_TIMEOUT)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, rows: Any) -> Any:
        """This process's rows of a batch."""
        return rows[self.rank :: self.count]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums the gradients of all parameters over all processes, in place and in one message."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Waits until every process has called this."""
        if self.count > 1:
            dist.barrier()

    def end(self) -> None:
        """Ends the communication between the processes."""
        if self.count > 1:
            dist.destroy_process_group()
