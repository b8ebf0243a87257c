"""The order of the training texts in an epoch: random, but with texts of similar length together.

A batch is padded to its longest text. In batches drawn at random more than half of the tokens are
padding; in batches of similar length hardly any are, so that a step takes less time.

Shapes: N training texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch.utils.data

_STEPS_PER_POOL = 50  # as in transformers' LengthGroupedSampler
_POOLS = 4  # at least, so that a small data set is not sorted as a whole


class SimilarLengthSampler(torch.utils.data.Sampler[int]):
    """Yields row numbers such that each optimiser step gets texts of similar length.

    The rows are permuted, divided into pools of 50 steps (fewer if that leaves less than four
    pools), and sorted by length within each pool. The pools are cut into steps, and the steps are
    permuted, except that the one with the longest text comes first, so that a lack of memory shows
    at once, and that the rows that fill no whole step come last. Within a step the texts are in
    descending order of length, so its micro-batches, and the batches of processes that work on it
    at the same time, have similar lengths too.

    The order is a function of the seed and the epoch alone. Given the same number of texts per
    step, it does not depend on how they are divided into micro-batches and processes.

    Args:
        lengths: [N] the number of tokens of each text.
        step_size: how many texts an optimiser step takes from all its micro-batches and processes.
        seed: of the permutations, 0 or more.
        epoch: returns the number of the current epoch; it is called whenever an iteration begins.
    """

    def __init__(
        self, lengths: np.ndarray, step_size: int, seed: int, epoch: Callable[[], int]
    ) -> None:
        self.lengths = lengths
        self.step_size = step_size
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        size, lengths_N = self.step_size, self.lengths
        random = np.random.default_rng([self.seed, self.epoch()])
        rows_N = random.permutation(len(lengths_N))
        whole = len(rows_N) // size * size
        pool = size * min(max(whole // size // _POOLS, 1), _STEPS_PER_POOL)
        pools = [rows_N[i : min(i + pool, whole)] for i in range(0, whole, pool)]
        ordered = [rows[np.argsort(-lengths_N[rows], kind="stable")] for rows in pools]
        steps = [rows[i : i + size] for rows in ordered for i in range(0, len(rows), size)]
        steps = [steps[i] for i in random.permutation(len(steps))]
        if steps:
            longest = int(np.argmax([lengths_N[rows[0]] for rows in steps]))
            steps.insert(0, steps.pop(longest))
        rest = rows_N[whole:]
        steps.append(rest[np.argsort(-lengths_N[rest], kind="stable")])
        return iter(np.concatenate(steps).tolist())


def text_lengths(dataset: Any, length_column: str = "length") -> np.ndarray | None:
    """[N] int64, the number of tokens of each text; None if the rows do not tell.

    Args:
        dataset: map-style rows.
        length_column: the column that holds the lengths; without it, those of `input_ids` are
            counted.
    """
    names = getattr(dataset, "column_names", None)
    if names is not None and length_column in names:
        return np.asarray(dataset[length_column], dtype=np.int64)
    if names is not None and "input_ids" in names:
        return _counted_in_arrow(dataset)
    rows = (dataset[i] for i in range(len(dataset)))
    lengths = []
    for row in rows:
        if not isinstance(row, Mapping) or not ({length_column, "input_ids"} & row.keys()):
            return None
        lengths.append(row[length_column] if length_column in row else len(row["input_ids"]))
    return np.asarray(lengths, dtype=np.int64)


def _counted_in_arrow(dataset: Any) -> np.ndarray:
    """The lengths of `input_ids` in a table of `datasets`, without making lists of its numbers."""
    import pyarrow.compute

    tables = dataset.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
    counts = [pyarrow.compute.list_value_length(table["input_ids"]).to_numpy() for table in tables]
    return np.concatenate([np.zeros(0), *counts]).astype(np.int64)
