"""One encoder, two stock heads: a classifier and the same checkpoint's masked LM.

Shapes: B examples, L tokens, C classes, H width.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from masktuning.modeling.attention_mask import full_mask, takes_4d_mask
from masktuning.modeling.loading import EXPECTED_NEW, check_language, check_masked_lm, load_float32
from masktuning.modeling.mlm_head import MaskedLMHead
from masktuning.modeling.perturbation import MaskBatch, Perturbation, masked_lm_pass
from masktuning.ops import MaskedLMOutput

logger = logging.getLogger(__name__)

HEAD_FOLDER = "mlm_head"
_HEAD_WEIGHTS = f"{HEAD_FOLDER}/model.safetensors"


class MaskedPass(NamedTuple):
    """What `MaskTuningModel(phase="masked_lm")` returns."""

    output: MaskedLMOutput
    targets: Tensor
    """[M] int64, the original tokens."""


class MaskTuningModel(nn.Module):
    """A sequence classifier and a masked-LM head on one shared encoder.

    Called as a stock classifier it is one: `model(**batch)` returns logits of the clean text.
    Training asks for a phase: "masked_lm" (pass A: mask, predict, substitute), "classify"
    (pass B on the perturbed ids) or "joint" (both in one forward, for wrappers that allow only
    one backward).
    """

    def __init__(self, classifier: PreTrainedModel, mlm: PreTrainedModel | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.mlm_head = None if mlm is None else MaskedLMHead(_share_encoder(classifier, mlm))
        self._head_names = [] if self.mlm_head is None else self._find_head_names()
        self._takes_4d_mask = takes_4d_mask(classifier)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, mlm_head: bool = True, **config: Any
    ) -> MaskTuningModel:
        """Loads a checkpoint's classifier and masked-LM head in float32.

        Args:
            name: a hub id, or a folder: any checkpoint of a family with a masked-LM class, or one
                that `save_pretrained` wrote.
            mlm_head: False loads the classifier alone, for methods that need no masked LM.
            config: num_labels, id2label, label2id, ... for the classifier's configuration.

        Raises:
            ValueError: if the family has no masked-LM or no sequence-classification class.

        Weights that the checkpoint lacks are newly initialised and named in a warning.
        """
        settings = AutoConfig.from_pretrained(name)
        if type(settings) not in AutoModelForSequenceClassification._model_mapping:
            raise ValueError(f"{name}: {settings.model_type} has no sequence-classification class")
        check_language(name, settings)
        if mlm_head:
            check_masked_lm(name, settings)
        classifier = load_float32(AutoModelForSequenceClassification, name, EXPECTED_NEW, **config)
        if not mlm_head:
            return cls(classifier, None)
        weights = Path(name) / _HEAD_WEIGHTS
        if not weights.is_file():
            return cls(classifier, load_float32(AutoModelForMaskedLM, name, ()))
        model = cls(classifier, AutoModelForMaskedLM.from_config(settings, dtype=torch.float32))
        model._load_head(weights)
        return model

    @classmethod
    def from_classifier(cls, classifier: PreTrainedModel, mlm_head: bool = True) -> MaskTuningModel:
        """Wraps a loaded sequence classifier; the head comes from the checkpoint it came from.

        Raises:
            ValueError: if the classifier was not loaded from a checkpoint, or its family has no
                masked-LM class.
        """
        name = classifier.config._name_or_path
        if classifier.dtype != torch.float32:
            # A 16-bit checkpoint loads as it is; weights below float32 lose small updates.
            logger.warning(
                "%s was loaded in %s and is trained in float32; for mixed precision give bf16 or "
                "fp16 in the arguments",
                name or "the classifier",
                str(classifier.dtype).removeprefix("torch."),
            )
            classifier.float()
        if not mlm_head:
            return cls(classifier, None)
        if not name:
            raise ValueError("the classifier came from no checkpoint to load a masked-LM head from")
        check_masked_lm(name, classifier.config)
        return cls(classifier, load_float32(AutoModelForMaskedLM, name, ()))

    @property
    def config(self) -> Any:
        return self.classifier.config

    @property
    def encoder(self) -> nn.Module:
        return self.classifier.base_model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        phase: str = "classify",
        rng: Tensor | None = None,
        perturbation: Perturbation | None = None,
        original_ids: Tensor | None = None,
        **masks: Any,
    ) -> SequenceClassifierOutput | MaskedPass | tuple[MaskedPass, Tensor]:
        """Runs one phase; `masks` are the collator's fields and may be there in every phase.

        Args:
            input_ids: [B, L] int64, the original tokens; in phase "classify" what is classified.
            attention_mask: [B, L], or None where there is no padding.
            rng: [2] int64, seed and epoch.
            original_ids: [B, L], classified too: the logits are then [2B, C], originals last.

        Raises:
            ValueError: on an unknown phase, or a masked-LM phase without a masked-LM head.
        """
        extras = {"attention_mask": self._mask(attention_mask)}
        if token_type_ids is not None:
            extras["token_type_ids"] = token_type_ids
        if phase == "classify":
            return SequenceClassifierOutput(logits=self._classify(input_ids, extras, original_ids))
        if self.mlm_head is None:
            raise ValueError(
                f"phase {phase!r} needs the masked-LM head: load it with mlm_head=True"
            )
        if phase not in ("masked_lm", "joint") or rng is None or perturbation is None:
            raise ValueError(f"phase {phase!r} is unknown, or came without rng and perturbation")
        masked = MaskedPass(
            *masked_lm_pass(
                lambda masked_ids: self._encode(masked_ids, input_ids, extras),
                self.mlm_head,
                input_ids,
                MaskBatch(**masks),
                rng,
                perturbation,
            )
        )
        if phase == "masked_lm":
            return masked
        beside = input_ids if perturbation.include_original else None
        return masked, self._classify(masked.output.input_ids, extras, beside)

    def save_pretrained(
        self, folder: str | Path, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        """Writes an ordinary classifier checkpoint, and `mlm_head/` beside it for resuming.

        Tensors that the head shares with the encoder are in the classifier's file only. Each
        file is written beside its place and renamed, so a reader never sees half of one.
        `state_dict`, if given, holds this module's weights gathered from several processes.
        """
        state = self.state_dict() if state_dict is None else state_dict
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
            prefix = "classifier."
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            self.classifier.save_pretrained(partial, state_dict=own)
            if self.mlm_head is not None:
                head = {k: state[f"mlm_head.mlm.{k}"].contiguous() for k in self._head_names}
                (Path(partial) / HEAD_FOLDER).mkdir()
                save_file(head, Path(partial) / _HEAD_WEIGHTS, {"format": "pt"})
                (folder / HEAD_FOLDER).mkdir(exist_ok=True)
            else:
                shutil.rmtree(folder / HEAD_FOLDER, ignore_errors=True)
            for file in sorted(path for path in Path(partial).rglob("*") if path.is_file()):
                os.replace(file, folder / file.relative_to(partial))

    def load_weights(self, folder: str | Path) -> None:
        """Loads in place what `save_pretrained` wrote.

        Raises:
            ValueError: if the folder's weights are not those of this model.
        """
        saved = load_float32(type(self.classifier), folder, ())
        self.classifier.load_state_dict(saved.state_dict())
        if self.mlm_head is not None:
            self._load_head(Path(folder) / _HEAD_WEIGHTS)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trades time for memory in the encoder, as on the stock classes."""
        self.classifier.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.classifier.gradient_checkpointing_disable()

    def _find_head_names(self) -> list[str]:
        """The head's own tensors, each once: none that is tied to the classifier or another."""
        assert self.mlm_head is not None
        seen = {tensor.data_ptr() for tensor in self.classifier.state_dict().values()}
        names = []
        for name, tensor in self.mlm_head.mlm.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                names.append(name)
        return sorted(names)

    def _load_head(self, weights: Path) -> None:
        assert self.mlm_head is not None
        state = load_file(weights)
        if sorted(state) != self._head_names:
            raise ValueError(f"{weights} holds {sorted(state)}, not {self._head_names}")
        self.mlm_head.mlm.load_state_dict(state, strict=False)

    def _encode(self, masked_ids: Tensor, input_ids: Tensor, extras: dict[str, Any]) -> Tensor:
        if self.config.is_encoder_decoder:
            # The decoder reads the original text shifted right: state j predicts token j.
            start = _decoder_start(input_ids, self.config)
            extras = {**extras, "decoder_input_ids": torch.cat([start, input_ids[:, :-1]], 1)}
        return self.encoder(input_ids=masked_ids, **extras)[0]

    def _classify(
        self, input_ids: Tensor, extras: dict[str, Any], original_ids: Tensor | None
    ) -> Tensor:
        if original_ids is not None:  # one forward: a second one would run DDP's hooks twice
            input_ids = torch.cat([input_ids, original_ids])
            extras = {k: None if v is None else torch.cat([v, v]) for k, v in extras.items()}
        if not self.config.is_encoder_decoder:
            return self.classifier(input_ids=input_ids, **extras).logits
        # BART pools its last </s>. The stock class finds it with a mask, whose length the host
        # must wait for, and in other rows insists on as many; an index needs neither.
        hidden_BLH = self.encoder(input_ids=input_ids, **extras)[0]
        t_L = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_B = torch.where(input_ids == self.config.eos_token_id, t_L, 0).amax(1)
        pooled_BH = hidden_BLH[torch.arange(len(last_B), device=last_B.device), last_B]
        head: Any = self.classifier.classification_head
        return head(pooled_BH)

    def _mask(self, attention_mask: Tensor | None) -> Tensor | None:
        if attention_mask is None or not self._takes_4d_mask:
            return attention_mask
        return full_mask(attention_mask)


def _decoder_start(input_ids: Tensor, config: Any) -> Tensor:
    """[B, 1], what the decoder reads first: a token of its own, or the text's last (mBART)."""
    if config.decoder_start_token_id is not None:
        return input_ids.new_full((input_ids.shape[0], 1), config.decoder_start_token_id)
    last_B1 = (input_ids != config.pad_token_id).sum(1, keepdim=True) - 1
    return input_ids.gather(1, last_B1)


def _share_encoder(classifier: PreTrainedModel, mlm: PreTrainedModel) -> PreTrainedModel:
    setattr(mlm, mlm.base_model_prefix, classifier.base_model)
    mlm.tie_weights()
    return mlm
