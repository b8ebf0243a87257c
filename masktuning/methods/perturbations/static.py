"""Strategies that perturb the training set once, before training.

Shapes: B examples, L tokens, n versions of each example.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from masktuning.config.errors import UsageError
from masktuning.config.files import make, replaced_when_complete
from masktuning.data.batch import Batch
from masktuning.data.example_ids import column, with_column
from masktuning.methods.perturbations.base import Perturbed, Strategy
from masktuning.methods.perturbations.options import StrategyOptions
from masktuning.modeling.shared_encoder import MaskTuningModel
from masktuning.ops import MaskedLMOutput

logger = logging.getLogger(__name__)

_VERSION = 2  # to be raised when the same inputs give other texts

COLUMN = "perturbed_input_ids"
TYPES = "perturbed_token_type_ids"
MASK = "perturbed_attention_mask"


class Version(NamedTuple):
    """One perturbed version of a text."""

    input_ids: list[int]
    token_type_ids: list[int] | None


class Rows(NamedTuple):
    """What the strategies read of a training set."""

    input_ids: list[list[int]]
    token_type_ids: list[list[int]] | None
    labels: list[int]
    example_ids: list[int]

    def types(self) -> Sequence[list[int] | None]:
        """The token types of each row, None where there are none."""
        return self.token_type_ids or [None] * len(self.input_ids)


class StaticStrategy(Strategy):
    """Classifies version e mod n of each text in epoch e.

    `generate` makes n versions of every text. They are the column `perturbed_input_ids` of the
    training set (a list of n texts per row), alongside `perturbed_token_type_ids` where the rows
    have token types; rows keep their example_id and their label. A training set that has the
    column already is left as it is.
    """

    def generate(
        self, model: MaskTuningModel, rows: Rows, cache: Path
    ) -> Iterable[Sequence[Version]]:
        """The n versions of each row, with a model that is in evaluation mode."""
        raise NotImplementedError

    def reads(self, model: MaskTuningModel, cache: Path) -> list[nn.Module]:
        """The modules that the versions depend on."""
        heads = [] if model.mlm_head is None else [model.mlm_head.mlm]
        return [model.encoder, *heads]

    def prepare(self, model: MaskTuningModel, train: Any, cache: Path) -> Any:
        """The training set with its perturbed versions, which are kept in the folder `cache`.

        The model is the one that training starts from, also where a run is resumed: the weights of
        a checkpoint are loaded later.

        Raises:
            UsageError: for a stream, which cannot be perturbed beforehand.
        """
        if not hasattr(train, "__len__"):
            raise UsageError(
                f"--perturbation {self.name} perturbs the whole training set beforehand, which a "
                "stream does not allow: use --perturbation mlm or random"
            )
        if not len(train) or COLUMN in train[0]:
            return train
        rows = _rows(train)
        key = self._key(rows, self.reads(model, cache))
        path = cache / f"perturbation-{self.name}-{key[:16]}.safetensors"
        if not path.is_file():
            make(cache)
            with _evaluating(model):
                versions = [list(one) for one in self.generate(model, rows, cache)]
            _write(path, versions)
        ids, types = _read(path)
        _say_unchanged(self.name, rows, ids)
        train = with_column(train, COLUMN, ids)
        return train if types is None else with_column(train, TYPES, types)

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds the versions [B, n, L]; where one is longer than the originals, those are padded."""
        needed = [COLUMN] if batch.token_type_ids is None else [COLUMN, TYPES]
        for name in needed:
            if any(name not in row for row in rows):
                raise ValueError(
                    f"perturbation {self.name} needs the column {name!r} of the training set"
                )
        texts = [version for row in rows for version in row[COLUMN]]
        batch = self._widened(batch, max(map(len, texts)))
        width, pad_id = batch.input_ids.shape[1], self.tokenizer.pad_token_id
        ids_BnL = self._padded(texts, width, pad_id).view(len(rows), -1, width)
        attended_BnL = ids_BnL != pad_id
        batch.columns[COLUMN] = ids_BnL
        if batch.attention_mask is not None or not bool(attended_BnL.all()):
            batch.columns[MASK] = attended_BnL.long()
            if batch.attention_mask is None:
                batch.attention_mask = torch.ones_like(batch.input_ids)
        if batch.token_type_ids is not None:
            types = [version for row in rows for version in row[TYPES]]
            pad_type = self.tokenizer.pad_token_type_id
            batch.columns[TYPES] = self._padded(types, width, pad_type).view_as(ids_BnL)
        return batch

    def perturb(self, batch: Batch, rng: Tensor, output: MaskedLMOutput | None) -> Perturbed:
        """See `Strategy.perturb`."""
        n = batch.columns[COLUMN].shape[1]
        index = (rng[1] % n)[None]  # on the device, which nobody waits for

        def version(name: str) -> Tensor | None:
            found = batch.columns.get(name)
            return None if found is None else found.index_select(1, index).squeeze(1)

        ids_BL = version(COLUMN)
        assert ids_BL is not None
        return Perturbed(ids_BL, version(MASK), version(TYPES))

    def _key(self, rows: Rows, modules: list[nn.Module]) -> str:
        """What the versions are made of, as a hash."""
        names = set(StrategyOptions.__dataclass_fields__)
        options = {k: v for k, v in asdict(self.options).items() if k in names}
        words = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        tokens = [words.hexdigest(), sorted(self.tokenizer.all_special_ids)]
        digest = hashlib.sha256(json.dumps([_VERSION, self.seed, options, tokens, rows]).encode())
        for module in modules:
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()

    def _padded(self, texts: list[list[int]], width: int, value: int) -> Tensor:
        """[N, width], the texts padded on the tokenizer's side."""
        left = self.tokenizer.padding_side == "left"
        gaps = [[value] * (width - len(text)) for text in texts]
        pairs = zip(texts, gaps, strict=True)
        return torch.tensor([gap + text if left else text + gap for text, gap in pairs])

    def _widened(self, batch: Batch, width: int) -> Batch:
        """The batch padded to at least `width` tokens."""
        more = width - batch.input_ids.shape[1]
        if more <= 0:
            return batch
        if batch.attention_mask is None:
            batch.attention_mask = torch.ones_like(batch.input_ids)
        values = {
            "input_ids": self.tokenizer.pad_token_id,
            "attention_mask": 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
            "maskable": False,
        }
        sides = (more, 0) if self.tokenizer.padding_side == "left" else (0, more)
        for name, value in values.items():
            tensor = getattr(batch, name)
            if tensor is not None:
                setattr(batch, name, F.pad(tensor, sides, value=value))
        return batch


@contextmanager
def _evaluating(model: MaskTuningModel) -> Iterator[None]:
    """Within it the model is on the training's device, without dropout and without gradients."""
    training, before = model.training, next(model.parameters()).device
    model.to(PartialState().device).eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training).to(before)


def _rows(train: Any) -> Rows:
    first = train[0]
    types = column(train, "token_type_ids") if "token_type_ids" in first else None
    name = "labels" if "labels" in first else "label"
    labels = column(train, name) if name in first else [-100] * len(train)
    as_lists = [list(map(int, ids)) for ids in column(train, "input_ids")]
    return Rows(
        as_lists,
        None if types is None else [list(map(int, one)) for one in types],
        list(map(int, labels)),
        list(map(int, column(train, "example_id"))),
    )


def _write(path: Path, versions: list[list[Version]]) -> None:
    """Writes n versions per row, completely or not at all."""
    flat = [version for of_row in versions for version in of_row]
    lengths = torch.tensor([[len(v.input_ids) for v in of_row] for of_row in versions])
    tensors = {
        "lengths": lengths.int(),
        "input_ids": torch.tensor([i for v in flat for i in v.input_ids], dtype=torch.int32),
    }
    if flat[0].token_type_ids is not None:
        types = [i for v in flat for i in v.token_type_ids or ()]
        tensors["token_type_ids"] = torch.tensor(types, dtype=torch.int32)
    with replaced_when_complete(path) as partial:
        save_file(tensors, partial)


def _read(path: Path) -> tuple[list[list[list[int]]], list[list[list[int]]] | None]:
    """The token ids, and the token types if there are any, of n versions per row."""
    tensors = load_file(path)
    lengths = tensors["lengths"]

    def texts(name: str) -> list[list[list[int]]]:
        flat = [one.tolist() for one in tensors[name].split(lengths.flatten().tolist())]
        n = lengths.shape[1]
        return [flat[i : i + n] for i in range(0, len(flat), n)]

    return texts("input_ids"), texts("token_type_ids") if "token_type_ids" in tensors else None


def _say_unchanged(name: str, rows: Rows, ids: list[list[list[int]]]) -> None:
    """Says how many texts have no perturbed version."""
    pairs = zip(rows.input_ids, ids, strict=True)
    same = sum(all(version == original for version in of_row) for original, of_row in pairs)
    if same:
        logger.warning(
            "--perturbation %s: %d of %d training texts have no perturbed version and are "
            "classified as they are",
            name,
            same,
            len(ids),
        )
