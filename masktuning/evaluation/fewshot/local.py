"""Likelihoods of the labels under a causal language model in this process.

Shapes: n prompts, C labels, R different token sequences, P tokens of the prefix, L tokens after it,
U positions whose next token is looked up, V tokens of the vocabulary.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DynamicCache,
    PreTrainedTokenizerBase,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils import logging as transformers_logging

from masktuning.config.errors import UsageError, one_line
from masktuning.modeling.loading import (
    LOADING_ERRORS,
    at,
    check_folder,
    check_vocabulary,
    load_tokenizer,
)

_TOKENS_OF_A_TEXT = 128  # a batch of 64 texts may have 64 times as many tokens
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = ("config.json", "tokenizer.json")

_LAYERS = {DynamicLayer, DynamicSlidingWindowLayer}  # of keys and values, and no other state

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class _Continuation:
    """Which tokens of a sequence are one label's answer to one prompt."""

    prompt: int
    label: int
    start: int
    """The place of the answer's first token in the sequence."""
    tokens: Tokens


class LikelihoodScorer:
    """The log-likelihood of each label's answer after a prompt, summed over its tokens.

    The tokens that all prompts begin with, those of the solved examples, are computed once and
    kept in the model's key-value cache. If the cache is not one of keys and values alone, all
    tokens of every prompt are computed.

    Args:
        tokenizer: that of the model.
        config: the model's configuration.
        identity: what tells this model from all others.
        batch_size: how many sequences of 128 tokens a batch may have; longer ones are fewer.
    """

    token_count = "counted with the model's tokenizer"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: Any,
        identity: dict[str, Any],
        batch_size: int,
    ) -> None:
        self.tokenizer, self.identity = tokenizer, identity
        self.batch_size = batch_size
        self.limit = min(
            tokenizer.model_max_length,  # a huge number if the tokenizer does not know its limit
            getattr(config, "max_position_embeddings", None) or sys.maxsize,
        )
        first = tokenizer("a")["input_ids"][0]
        self._start = [first] if first == tokenizer.bos_token_id else []
        self.model: Any = None
        self._prefix: Tokens = ()
        self._cache: DynamicCache | None = None

    def use(self, model: Any) -> None:
        """Takes the model itself, which counting does without."""
        self.model = model.eval()
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def count_tokens(self, prompts: Sequence[str], answers: Sequence[str]) -> int:
        longest = max(answers, key=lambda answer: len(self._tokens(answer)))
        counts = [len(self._tokens(prompt + longest)) for prompt in prompts]
        if counts and max(counts) > self.limit:
            raise UsageError(
                f"a prompt has {max(counts)} tokens, but the model takes {self.limit}: give fewer "
                "--shots, other --sets, or another --fewshot_model"
            )
        return sum(counts)

    def ask(
        self, prompts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float]]]:
        """The place of each prompt and its C log-likelihoods, the longest prompts first."""
        self._prefix = ()
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            found = self.log_likelihoods([prompts[i] for i in part], answers)
            yield from zip(part, found, strict=True)

    def logits(self, answer: list[float], answers: Sequence[str]) -> list[float]:
        return answer

    def log_likelihoods(self, prompts: Sequence[str], answers: Sequence[str]) -> list[list[float]]:
        """[n, C] the log-likelihood of each answer after each prompt.

        The model never reads the last token of an answer, so sequences that differ in it alone are
        computed once: where every answer is one token, that is one sequence per prompt.
        """
        rows: dict[Tokens, list[_Continuation]] = {}
        for i, prompt in enumerate(prompts):
            start, wholes = self._encode(prompt, answers)
            for c, ids in enumerate(wholes):
                rows.setdefault(ids[:-1], []).append(_Continuation(i, c, start, ids[start:]))
        found = [[0.0] * len(answers) for _ in prompts]
        sequences = sorted(rows, key=len, reverse=True)
        size = max(1, self.batch_size * _TOKENS_OF_A_TEXT // len(sequences[0]))
        for first in range(0, len(sequences), size):
            batch = sequences[first : first + size]
            start = min(one.start for ids in batch for one in rows[ids])
            scores_RUV = self._log_probabilities(batch, start)
            uses = [(r, one) for r, ids in enumerate(batch) for one in rows[ids]]
            looked_up = [
                (r, one.start - start + t, token)
                for r, one in uses
                for t, token in enumerate(one.tokens)
            ]
            index = torch.tensor(looked_up, device=scores_RUV.device).T
            values = iter(scores_RUV[*index].double().tolist())
            for _, one in uses:
                found[one.prompt][one.label] = sum(next(values) for _ in one.tokens)
        return found

    def _encode(self, prompt: str, answers: Sequence[str]) -> tuple[int, list[Tokens]]:
        """Where the answers begin, in tokens, and the tokens of the prompt with each answer.

        The two are tokenised as one text, since a word's token may begin with the space before it.
        The answers begin at the first token that is not the same for all of them and in the prompt.
        """
        wholes = [self._tokens(prompt + answer) for answer in answers]
        return len(_common([self._tokens(prompt.rstrip(" ")), *wholes])), wholes

    def _tokens(self, text: str) -> Tokens:
        return (
            *self._start,
            *self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
        )

    @torch.inference_mode()
    def _log_probabilities(self, rows: list[Tokens], start: int) -> Tensor:
        """Log-probabilities [R, U, V], float32, of the token at place `start + u` at [:, u]."""
        cache, P = self._prefix_of(rows, start - 1)
        L = max(map(len, rows)) - P
        ids_RL = torch.zeros(len(rows), L, dtype=torch.long)
        mask_RT = torch.zeros(len(rows), P + L, dtype=torch.long)
        for r, ids in enumerate(rows):
            ids_RL[r, : len(ids) - P] = torch.tensor(ids[P:])
            mask_RT[r, : len(ids)] = 1
        U = P + L - (start - 1)
        kept = {"logits_to_keep": U} if self._keeps else {}
        if cache is not None:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(rows))
        device = self.model.device
        logits_RUV = self.model(
            input_ids=ids_RL.to(device),
            attention_mask=mask_RT.to(device),
            past_key_values=cache,
            use_cache=cache is not None,
            **kept,
        ).logits[:, -U:]
        return logits_RUV.float().log_softmax(-1)

    def _prefix_of(self, rows: list[Tokens], longest: int) -> tuple[DynamicCache | None, int]:
        """The cache of the tokens that all rows begin with, at most `longest`, and their number."""
        common = _common([self._prefix or rows[0], *rows])[:longest]
        if common != self._prefix:
            self._prefix = common
            self._cache = self._computed(common) if common else None
        return self._cache, len(self._prefix) if self._cache is not None else 0

    def _computed(self, prefix: Tokens) -> DynamicCache | None:
        """The keys and values of some tokens; None if the model keeps its past in another form."""
        kept = {"logits_to_keep": 1} if self._keeps else {}
        ids = torch.tensor([prefix], device=self.model.device)
        cache = getattr(self.model(input_ids=ids, use_cache=True, **kept), "past_key_values", None)
        known = isinstance(cache, DynamicCache) and {type(one) for one in cache.layers} <= _LAYERS
        return cache if known else None


def _common(sequences: Sequence[Tokens]) -> Tokens:
    """The tokens that all sequences begin with."""
    # The first and the last in order differ as early as any two.
    pair = min(sequences), max(sequences)
    same = takewhile(lambda two: two[0] == two[1], zip(*pair, strict=False))
    return tuple(token for token, _ in same)


def likelihood_scorer(
    name: str, tokenizer_name: str | None, revision: str | None, batch_size: int
) -> LikelihoodScorer:
    """A scorer with the tokenizer and the configuration of a model, still without its weights.

    Raises:
        UsageError: if they cannot be loaded, or the model is no causal language model.
    """
    check_folder(name, revision)
    try:
        config = AutoConfig.from_pretrained(name, **at(revision))
    except LOADING_ERRORS as error:
        raise UsageError(f"{name}: cannot be loaded: {one_line(error)}") from None
    masked = type(config) in AutoModelForMaskedLM._model_mapping
    if type(config) not in AutoModelForCausalLM._model_mapping or (
        masked and not getattr(config, "is_decoder", False)
    ):
        raise UsageError(
            f"{name}: {config.model_type} is no causal language model: give one such as GPT-2"
        )
    tokenizer = load_tokenizer(name, tokenizer_name, revision)
    version, config = _version(name, config), config.get_text_config()
    check_vocabulary(tokenizer, config)
    identity = {"model": name, "tokenizer": tokenizer_name, "version": version}
    return LikelihoodScorer(tokenizer, config, identity, batch_size)


def load_causal_lm(name: str, revision: str | None) -> Any:
    """A causal language model in its checkpoint's own dtype, on the GPU if there is one.

    Raises:
        UsageError: if it cannot be loaded, or lacks weights.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its own report is a page long
    transformers_logging.disable_progress_bar()
    auto: Any = AutoModelForCausalLM  # typed as if it always returned a model alone
    try:
        model, report = auto.from_pretrained(
            name, dtype="auto", output_loading_info=True, **at(revision)
        )
    except LOADING_ERRORS as error:
        raise UsageError(f"{name}: cannot be loaded: {one_line(error)}") from None
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise UsageError(f"{name}: is no trained language model (no {', '.join(missing)})")
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _version(name: str, config: Any) -> Any:
    """The commit of a model on the hub, or the sizes and times of a folder's files."""
    if not Path(name).is_dir():
        return config._commit_hash
    files = sorted(Path(name).iterdir())
    return [
        [file.name, file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.suffix in _WEIGHTS or file.name in _SETTINGS
    ]
