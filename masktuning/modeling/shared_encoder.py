"""One encoder under two stock heads: a classifier, and the masked LM of the same checkpoint.

Shapes: B examples, L tokens, C classes, H width of the hidden states.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from masktuning.modeling.attention_mask import full_mask, takes_4d_mask
from masktuning.modeling.checkpoint import (
    HEAD,
    METHOD,
    load_part,
    own_names,
    part_file,
    save_checkpoint,
    starting_with,
)
from masktuning.modeling.embedding_mask import EmbeddingMask, masked_embeddings
from masktuning.modeling.encoder_decoder import shifted_right, states_at_end
from masktuning.modeling.last_layer import (
    LastLayer,
    reads_first,
    reducible_layer,
    states_at_masked,
)
from masktuning.modeling.loading import (
    EXPECTED_NEW,
    at,
    check_language,
    check_masked_lm,
    load_float32,
    read_weights,
)
from masktuning.modeling.mlm_head import MaskedLMHead, share_encoder
from masktuning.modeling.pooled_state import PooledOutput, keeps_pooled
from masktuning.ops import MaskedTokens

logger = logging.getLogger(__name__)


class MaskTuningModel(nn.Module):
    """A sequence classifier and a masked-LM head on one shared encoder.

    `model(**batch)` is the classifier: it returns the logits of the texts as they are given. The
    methods use the encoder and the masked-LM head apart, as `encode` and `mlm_head`.
    """

    def __init__(self, classifier: PreTrainedModel, mlm: PreTrainedModel | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.mlm_head = None if mlm is None else MaskedLMHead(share_encoder(classifier, mlm))
        self._head_names: list[str] = []
        if self.mlm_head is not None:
            self._head_names = own_names(self.mlm_head.mlm, classifier)
        self._takes_4d_mask = takes_4d_mask(classifier)
        self._last_layer: LastLayer | None = None
        self.find_last_layer()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        mlm_head: bool = True,
        revision: str | None = None,
        ignore_mismatched_sizes: bool = False,
        **config: Any,
    ) -> MaskTuningModel:
        """Loads a checkpoint's classifier and masked-LM head in float32.

        Args:
            name: a hub id, or a folder: any checkpoint of a family with a masked-LM class, or one
                that `save_pretrained` wrote.
            mlm_head: False loads the classifier alone, for methods that need no masked LM.
            revision: the version on the hub, a branch, a tag or a commit; None for the latest.
            ignore_mismatched_sizes: whether a classifier of other labels is replaced by a new one.
            config: num_labels, id2label, label2id, ... for the classifier's configuration.

        Raises:
            ValueError: if the family has no masked-LM or no sequence-classification class.

        Weights that the checkpoint lacks are newly initialised and named in a warning.
        """
        version = at(revision)
        settings = AutoConfig.from_pretrained(name, **version)
        if type(settings) not in AutoModelForSequenceClassification._model_mapping:
            raise ValueError(f"{name}: {settings.model_type} has no sequence-classification class")
        check_language(name, settings)
        if mlm_head:
            check_masked_lm(name, settings)
        own_head = part_file(name, HEAD).is_file()
        weights = read_weights(name, settings, revision) if mlm_head and not own_head else None
        if ignore_mismatched_sizes:  # an option of the classifier only
            config["ignore_mismatched_sizes"] = True
        classifier = load_float32(
            AutoModelForSequenceClassification, name, EXPECTED_NEW, weights, **version, **config
        )
        if not mlm_head:
            return cls(classifier, None)
        if not own_head:
            return cls(classifier, load_float32(AutoModelForMaskedLM, name, (), weights, **version))
        model = cls(classifier, AutoModelForMaskedLM.from_config(settings, dtype=torch.float32))
        model._load_head(name)
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

    def find_last_layer(self) -> None:
        """Finds out whether the last layer may be computed only where the heads read it.

        Done at the start and by MaskTuningTrainer; call it after a change of the classifier's head.
        """
        self._last_layer = reducible_layer(self.classifier) if self._takes_4d_mask else None

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
        embedding_mask: EmbeddingMask | None = None,
        pooled: bool = False,
        **unused: Any,
    ) -> SequenceClassifierOutput:
        """Classifies texts: `logits` [B, C]. Labels, and columns that are for training, are unused.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L], or None where there is no padding.
            token_type_ids: [B, L], for families that have them.
            embedding_mask: a bool tensor that broadcasts to the embedding layer's output [B, L, H]
                (after its normalisation and dropout), or a function that makes it of that output.
                Where it is false, the output is replaced by zeros.
            pooled: whether to return a `PooledOutput` (logits and pooled state [B, H]).
        """
        extras = self._extras(attention_mask, token_type_ids)
        first = reads_first(self._last_layer)
        found: list[Tensor] | None = [] if pooled else None
        with masked_embeddings(self.encoder, embedding_mask), first:
            logits = self._classify(input_ids, extras, found)
        if found is None:
            return SequenceClassifierOutput(logits=logits)
        return PooledOutput(logits=logits, pooled=found[0])

    def encode(
        self,
        shown_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, L, H] of the masked texts `shown_ids`, for the masked-LM head.

        `input_ids` [B, L] are the original texts, which the decoder of an encoder-decoder reads.
        """
        extras = self._extras(attention_mask, token_type_ids)
        if self.config.is_encoder_decoder:
            extras["decoder_input_ids"] = shifted_right(input_ids, self.config)
        return self.encoder(input_ids=shown_ids, **extras)[0]

    def encode_masked(
        self,
        masked: MaskedTokens,
        input_ids: Tensor,
        offsets: Tensor,
        max_masked: int,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [M, H] of the masked texts, at the masked positions.

        Args:
            masked: what `sample_masks` returned. Surplus rows get the states of any position.
            input_ids, attention_mask, token_type_ids: as in `encode`.
            offsets: [B + 1] int64, what the masks were sampled from.
            max_masked: the largest number of masked positions of one example, by which the last
                layer is computed at these positions only; 0 if it is not known.
        """
        return states_at_masked(
            lambda: self.encode(masked.input_ids, input_ids, attention_mask, token_type_ids),
            self._last_layer,
            masked,
            offsets,
            max_masked,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        state_dict: dict[str, Tensor] | None = None,
        method: dict[str, Tensor] | None = None,
    ) -> None:
        """Writes an ordinary classifier checkpoint, and `mlm_head/` alongside it for resuming.

        Tensors that the head shares with the encoder are in the classifier's file only.

        Args:
            folder: where to write; made if it is missing.
            state_dict: this module's weights where they were gathered from several processes.
            method: the weights of a training method that are not this model's.
        """
        state = self.state_dict() if state_dict is None else state_dict
        parts = {METHOD: method} if method else {}
        if self.mlm_head is not None:
            parts[HEAD] = {name: state[f"mlm_head.mlm.{name}"] for name in self._head_names}
        save_checkpoint(folder, self.classifier, starting_with("classifier.", state), parts)

    def load_weights(self, folder: str | Path) -> None:
        """Loads in place what `save_pretrained` wrote.

        Raises:
            ValueError: if the folder's weights are not those of this model.
        """
        saved = load_float32(type(self.classifier), folder, ())
        self.classifier.load_state_dict(saved.state_dict())
        if self.mlm_head is not None:
            self._load_head(folder)

    def _load_head(self, folder: str | Path) -> None:
        assert self.mlm_head is not None
        load_part(folder, HEAD, self.mlm_head.mlm, self._head_names)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trades time for memory in the encoder, as on the stock classes."""
        self.classifier.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """The older name of `activation_checkpointing_enable`, for older transformers."""
        self.classifier.gradient_checkpointing_enable(**kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.classifier.gradient_checkpointing_disable()

    def _extras(
        self, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> dict[str, Any]:
        """What the encoder takes alongside the token ids."""
        if attention_mask is not None and self._takes_4d_mask:
            attention_mask = full_mask(attention_mask)
        extras: dict[str, Any] = {"attention_mask": attention_mask}
        return extras if token_type_ids is None else {**extras, "token_type_ids": token_type_ids}

    def _classify(
        self, input_ids: Tensor, extras: dict[str, Any], found: list[Tensor] | None = None
    ) -> Tensor:
        """The logits; the pooled state is appended to `found`, unless that is None."""
        if not self.config.is_encoder_decoder:
            with keeps_pooled(self.encoder, found):
                return self.classifier(input_ids=input_ids, **extras).logits
        hidden_BLH = self.encoder(input_ids=input_ids, **extras)[0]
        head: Any = self.classifier.classification_head
        states_BH = states_at_end(hidden_BLH, input_ids, self.config)
        if found is not None:
            found.append(states_BH)
        return head(states_BH)
