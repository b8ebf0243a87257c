"""FSDP: sharded training, with the checkpoints that every training writes."""

from __future__ import annotations

import os

from accelerate import Accelerator
from transformers import TrainingArguments


def check_sharding(args: TrainingArguments, accelerator: Accelerator) -> None:
    """Checks the settings of FSDP, and makes it write whole weights into checkpoints.

    Otherwise transformers would write shards only, from which no classifier can be loaded. FSDP
    gathers the weights in the first process; encoders are small enough for that.

    Raises:
        ValueError: if sharding was asked for and accelerate does not shard, as on CPUs, where it
            would silently train with DDP; or if only the first process loads the weights, since
            the others test the model's structure by running it, for which they need the weights.
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
