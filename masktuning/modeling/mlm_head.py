"""The masked-LM head of any family on selected rows, without a table of families.

A stub replaces the encoder of the masked-LM class and returns hidden states that are given to it.
The class's own forward then runs its own head on just those rows; a second stub, in the place of
the decoder, records what the head passes to its decoder.

Shapes: M masked positions, H width, E width of the decoder's input, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from masktuning.ops import MaskedLMOutput, masked_lm_head, masked_lm_head_from_logits


class _GivenStates(BaseModelOutput):
    """An encoder's output in which everything but the given hidden states is None."""

    def __getattr__(self, name: str) -> None:
        return None


class _EncoderStub(nn.Module):
    """Takes the place of the encoder and returns the hidden states that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> _GivenStates:
        return _GivenStates(last_hidden_state=self.hidden)


class _DecoderStub(nn.Module):
    """Takes the place of the decoder, records its input and returns zeros for `rows` rows."""

    def __init__(self, rows: int, vocab_size: int) -> None:
        super().__init__()
        self.shape = (1, rows, vocab_size)
        self.seen: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.seen = hidden
        return hidden.new_zeros(self.shape)


class MaskedLMHead(nn.Module):
    """The head of a masked LM, applied to rows of hidden states.

    Args:
        mlm: the family's masked-LM model; it shares the classifier's encoder, and its decoder is
            tied already.

    Attributes:
        fused: whether the decoder proved to be a plain linear layer, so that its matrix product
            can be fused with the loss and the substitution.
    """

    def __init__(self, mlm: PreTrainedModel) -> None:
        super().__init__()
        # A tuple, so that the decoder and its owner are not registered a second time. It is found
        # before the encoder is replaced: some classes look there for their output embedding.
        self._decoder_place = _place(mlm, mlm.get_output_embeddings())
        self._encoder_stub = _EncoderStub()
        setattr(mlm, mlm.base_model_prefix, self._encoder_stub)
        self.mlm = mlm
        self.config = mlm.config
        self._added_bias_name = ""
        self.fused = isinstance(self._decoder(), nn.Linear) and self._probe()

    def forward(self, hidden: Tensor, *rows: Any) -> MaskedLMOutput:
        """Losses and predictions for the rows `hidden` [M, H].

        `rows` are the arguments of `ops.masked_lm_head` that follow the bias, in their order.
        """
        if not self.fused:
            return masked_lm_head_from_logits(self.logits(hidden), *rows)
        return masked_lm_head(self.transform(hidden), self.weight, self.bias, *rows)

    @property
    def weight(self) -> Tensor:
        """[V, E], the decoder's weight, usually the encoder's own embedding."""
        return self._decoder().weight

    @property
    def bias(self) -> Tensor | None:
        """[V], the decoder's bias plus what the family adds after its decoder."""
        bias = self._decoder().bias
        if not self._added_bias_name:
            return bias
        added = _get(self.mlm, self._added_bias_name).flatten()
        return added if bias is None else bias + added

    def logits(self, hidden: Tensor) -> Tensor:
        """[M, V], the stock head on the rows `hidden` [M, H]."""
        self._encoder_stub.hidden = hidden[None]
        try:
            output = self.mlm(input_ids=self._dummy_ids(hidden), return_dict=True)
        finally:
            self._encoder_stub.hidden = None
        return output.logits[0]

    def transform(self, hidden: Tensor) -> Tensor:
        """[M, E], what the stock head passes to its decoder for the rows `hidden` [M, H]."""
        return self._without_decoder(hidden, rows=0)[0]

    def _without_decoder(self, hidden: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """The decoder's input, and the logits of the stock head where its decoder returns zeros."""
        owner, name = self._decoder_place
        decoder = owner._modules[name]
        stub = _DecoderStub(rows, self.config.vocab_size)
        owner._modules[name] = stub
        self._encoder_stub.hidden = hidden[None]
        try:
            output = self.mlm(input_ids=self._dummy_ids(hidden), return_dict=True)
        finally:
            owner._modules[name] = decoder
            self._encoder_stub.hidden = None
        assert stub.seen is not None
        return stub.seen[0], output.logits

    def _dummy_ids(self, hidden: Tensor) -> Tensor:
        # Some families shift or measure their input ids; the stub ignores them.
        return torch.ones(1, hidden.shape[0], dtype=torch.int64, device=hidden.device)

    def _decoder(self) -> Any:
        owner, name = self._decoder_place
        return owner._modules[name]

    def _probe(self) -> bool:
        """Whether transform, weight and bias give the stock logits of random hidden states."""
        training = self.mlm.training
        self.mlm.eval()
        # A generator of its own: loading a model must not move the caller's random state.
        generator = torch.Generator().manual_seed(0)
        hidden_MH = torch.randn(4, self.config.hidden_size, generator=generator).to(self.weight)
        try:
            self._added_bias_name = self._find_added_bias(hidden_MH)
            with torch.no_grad():
                stock_MV = self.logits(hidden_MH)
                ours_MV = F.linear(self.transform(hidden_MH), self.weight, self.bias)
        except AttributeError:  # the head reads its decoder's weight rather than call it
            return False
        finally:
            self.mlm.train(training)
        # A decoder followed by anything but an addition (a softcap, a scale) shows up here.
        return ours_MV.shape == stock_MV.shape and torch.allclose(
            ours_MV, stock_MV, rtol=1e-4, atol=1e-5 * float(stock_MV.abs().max())
        )

    def _find_added_bias(self, hidden_MH: Tensor) -> str:
        """Name of the parameter or buffer that the class adds to its decoder's output, or ""."""
        V = self.weight.shape[0]
        _, constant = self._without_decoder(hidden_MH, rows=hidden_MH.shape[0])
        parameters = {n: p for n, p in self.mlm.named_parameters() if p.numel() == V}
        if constant.requires_grad and parameters:
            found = torch.autograd.grad(constant.sum(), [*parameters.values()], allow_unused=True)
            for name, gradient in zip(parameters, found, strict=True):
                if gradient is not None:
                    return name
        for name, buffer in self.mlm.named_buffers():
            if buffer.numel() == V and torch.equal(buffer.flatten(), constant[0, 0]):
                return name
        return ""


def _place(root: nn.Module, module: nn.Module | None) -> tuple[nn.Module, str]:
    """The module that holds `module` as a child, and the child's name."""
    for parent in root.modules():
        for name, child in parent.named_children():
            if child is module:
                return parent, name
    raise ValueError(f"{type(root).__name__} has no output embedding to predict tokens with")


def _get(root: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(root.get_submodule(owner), leaf)


def share_encoder(classifier: PreTrainedModel, mlm: PreTrainedModel) -> PreTrainedModel:
    """The masked LM with the classifier's encoder in place of its own, and tied weights."""
    setattr(mlm, mlm.base_model_prefix, classifier.base_model)
    mlm.tie_weights()
    # Both models may be loaded from the same tensors (`read_weights`). Parameters that are not tied
    # would then share memory, and training one would change the other.
    known = {id(parameter) for parameter in classifier.parameters()}
    addresses = {parameter.data_ptr() for parameter in classifier.parameters()}
    for parameter in mlm.parameters():
        if id(parameter) not in known and parameter.data_ptr() in addresses:
            parameter.data = parameter.data.clone()
    return mlm
