"""A copy of a model that perturbs texts and is never trained.

Shapes: B examples, L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from masktuning.data.batch import Batch
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.mask_tuning_options import MaskTuningOptions
from masktuning.modeling.shared_encoder import MaskTuningModel


class FrozenGenerator:
    """Mask-tuning's perturbation, by a copy of a model as it is now, without dropout.

    This is not a module. A method that keeps one as an attribute therefore does not register the
    copy, so that the optimizer, DDP and the checkpoints do not see it. A trainer that resumes a run
    makes the method before it loads the checkpoint, so the copy is that of the model that the run
    started from.

    Args:
        model: with a masked-LM head; it is left as it is.
        tokenizer: the model's tokenizer.
        options: how texts are perturbed.
    """

    def __init__(
        self, model: MaskTuningModel, tokenizer: PreTrainedTokenizerBase, options: MaskTuningOptions
    ) -> None:
        method = MaskTuning(copy.deepcopy(model), tokenizer, options)
        self._method = method.eval().requires_grad_(False)

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: the processes of a data loader choose masks, and perturb no text."""
        light = copy.copy(self._method)
        light.__dict__ = {**vars(light), "_modules": {}, "_parameters": {}, "_buffers": {}}
        return {"_method": light}

    def collate(self, batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Adds which tokens may be masked; see `MaskTuning.collate`."""
        return self._method.collate(batch, rows)

    def on(self, device: torch.device) -> MaskTuning:
        """The method around the copy, on a device, where it stays."""
        if next(self._method.parameters()).device != device:
            self._method.to(device)
        return self._method

    @torch.no_grad()
    def perturb(self, batch: Batch, rng: Tensor) -> Tensor:
        """The perturbed texts [B, L] of a batch that `collate` has prepared."""
        return self.on(batch.input_ids.device).perturb(batch, rng)


def freeze_mlm_head(model: MaskTuningModel) -> None:
    """Takes the head's own parameters out of training, for methods that train without the head.

    With `ddp_find_unused_parameters=False` DDP insists on a gradient for each trained parameter.
    """
    assert model.mlm_head is not None
    shared = set(model.classifier.parameters())
    for parameter in set(model.mlm_head.parameters()) - shared:
        parameter.requires_grad_(False)
