"""Which training texts share a batch: by default, texts of similar length."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch.utils.data
from transformers import TrainingArguments

from masktuning.data.length_sampler import SimilarLengthSampler, text_lengths

logger = logging.getLogger(__name__)

BY_LENGTH = "group_by_length"
"""The value of Trainer's `train_sampling_strategy` that stands for batches of similar length."""


def similar_length_sampler(
    dataset: Any, args: TrainingArguments, epoch: Callable[[], int]
) -> torch.utils.data.Sampler[int]:
    """The sampler of batches of similar length; of random ones, with a warning, without lengths.

    Unlike that of Trainer, its order is a function of seed and epoch alone, and the texts of one
    optimiser step have similar lengths also where they are divided among processes.
    """
    lengths = text_lengths(dataset, args.length_column_name)
    if lengths is None:
        logger.warning(
            "The rows of train_dataset have neither %s nor input_ids, so their lengths are "
            "unknown: batches are random instead of being made of texts of similar length",
            args.length_column_name,
        )
        return torch.utils.data.RandomSampler(dataset)
    accelerator: Any = args.accelerator_config
    processes = 1 if accelerator.split_batches else args.world_size
    step_size = args.train_batch_size * args.gradient_accumulation_steps * processes
    seed = args.seed if args.data_seed is None else args.data_seed
    return SimilarLengthSampler(lengths, step_size, seed, epoch)


def warn_of_stream(dataset: Any, args: TrainingArguments) -> None:
    """Says so where batches of similar length were wanted, but the texts come as a stream."""
    if args.train_sampling_strategy != BY_LENGTH:
        return
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        logger.warning(
            "train_dataset is a stream: its batches are made of texts in the order in which they "
            "come, not of texts of similar length"
        )
