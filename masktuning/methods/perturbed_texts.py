"""All texts of a training set, perturbed once by a frozen masked LM, and kept in a file.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from masktuning.config.files import make, replaced_when_complete
from masktuning.data.batch import Batch
from masktuning.data.collator import PaddingCollator
from masktuning.data.example_ids import column, refuse_stream
from masktuning.data.token_rows import TokenRows
from masktuning.methods.base import Method
from masktuning.methods.frozen_generator import FrozenGenerator
from masktuning.methods.mask_tuning_options import MaskTuningOptions

FOLDER = "perturbed"  # in the folder of the stages
_TOKENS = 2**14  # of a batch, with its padding
MADE_EPOCH = 2**31
"""The epoch of the random numbers of texts that are made in advance. No training reaches it, so the
masks are not those that a masked LM was trained on before."""
_VERSION = 1  # to be raised when the same inputs give other texts


def perturbed_texts(
    method: Method, options: MaskTuningOptions, train: Any, cache: Path
) -> TokenRows:
    """The token ids of each text with its masked tokens replaced by predictions.

    The method's model makes the predictions as it is now, without dropout; it is left as it is.
    The masks are drawn with the method's seed and the epoch `MADE_EPOCH`, which no training
    reaches. The texts are kept in a file under a hash of the encoder's and the head's weights, the
    tokens, the options and the seed, and are read from there the next time: by the other processes,
    and by a run that is resumed.

    Args:
        method: whose model, tokenizer and seed are used.
        options: how texts are perturbed.
        train: the training set.
        cache: the folder of the stages' results.
    """
    refuse_stream(train, "the perturbed texts are made before training")
    originals = TokenRows.of(column(train, "input_ids"))
    path = cache / FOLDER / f"{_key(method, options, train, originals)}.safetensors"
    first = PartialState().is_main_process
    if path.is_file():
        return TokenRows(load_file(path)["input_ids"], originals.lengths)
    if first:
        print(f"perturbing {len(originals)} training texts with the masked LM")
    made = TokenRows(originals.tokens.copy(), originals.lengths)
    _perturb(method, options, train, made)
    if first:
        same = made.equal_rows(originals).mean() if len(made) else 0.0
        print(f"{same:.1%} of the perturbed texts are identical to the original ones")
        make(path.parent)
        with replaced_when_complete(path) as partial:
            save_file({"input_ids": made.tokens}, partial)
    return made


def _perturb(method: Method, options: MaskTuningOptions, train: Any, made: TokenRows) -> None:
    """Writes the perturbed texts to `made`, which holds the original ones."""
    tokenizer, device = method.tokenizer, PartialState().device
    generator = FrozenGenerator(method.model, tokenizer, options)
    pad = PaddingCollator(tokenizer)

    def collate(rows: Sequence[Any]) -> Batch:
        return generator.collate(Batch.from_dict(pad(rows)), rows)

    rng = torch.tensor([method.seed, MADE_EPOCH], device=device)
    batches = list(_batches(made.lengths))
    loader = DataLoader(train, batch_sampler=batches, collate_fn=collate)
    for rows, batch in zip(batches, loader, strict=True):
        perturbed_BL = generator.perturb(_moved(batch, device), rng).cpu().numpy()
        for i, ids_L in zip(rows, perturbed_BL, strict=True):
            first = len(ids_L) - made.lengths[i] if tokenizer.padding_side == "left" else 0
            made.slot(i)[:] = ids_L[first : first + made.lengths[i]]


def _batches(lengths: np.ndarray) -> Iterator[list[int]]:
    """Row numbers in batches of similar length, each of about the same number of tokens."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _TOKENS // max(1, int(lengths[order[start]])))
        yield order[start : start + size].tolist()
        start += size


def _moved(batch: Batch, device: torch.device) -> Batch:
    values = batch.as_dict().items()
    return Batch.from_dict({k: v.to(device) if isinstance(v, Tensor) else v for k, v in values})


def _key(method: Method, options: MaskTuningOptions, train: Any, originals: TokenRows) -> str:
    """A hash of everything that the perturbed texts depend on."""
    digest = hashlib.sha256()
    tokenizer, model = method.tokenizer, method.model
    special = [tokenizer.mask_token_id, *sorted(tokenizer.all_special_ids), len(tokenizer)]
    digest.update(repr([_VERSION, method.seed, asdict(options), special]).encode())
    for part in (model.encoder, model.mlm_head):
        assert part is not None
        for name, parameter in part.named_parameters():
            digest.update(name.encode())
            values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().tobytes())
    ids = np.asarray(column(train, "example_id"), dtype=np.int64)
    for array in (originals.tokens, originals.lengths, ids):
        digest.update(array.tobytes())
    return digest.hexdigest()[:32]
