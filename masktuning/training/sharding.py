"""FSDP: sharded training, with the checkpoints that every training writes."""

from __future__ import annotations

import os

from accelerate import Accelerator
from transformers import TrainingArguments


def check_sharding(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Lets checkpoints hold whole weights where the model is sharded.

    Otherwise transformers would write shards alone, and no classifier that loads anywhere. FSDP
    gathers the weights in the first process; encoders are small enough for that.

    Raises:
        ValueError: if the model is to be sharded and accelerate does not, as on CPUs, where it
            would train with DDP without a word; or if only the first process is to load it, since
            the others would find out about its head and its masks with weights that are not there.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    # `accelerate launch --use_fsdp` reaches the processes by this variable.
    wanted = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    if plugin is None and wanted and args.world_size > 1:
        raise ValueError("fsdp: accelerate shards models on GPUs only; train without it here")
    if plugin is None:
        return
    if plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp: each process has to load the model: give accelerate launch "
            "--fsdp_cpu_ram_efficient_loading false"
        )
    plugin.set_state_dict_type("FULL_STATE_DICT")
