"""Answers of an OpenAI-compatible endpoint, compared with the labels by normalised exact match."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from masktuning.config.errors import UsageError, one_line
from masktuning.data.labels import LabelNames
from masktuning.evaluation.fewshot.options import FewShotArguments
from masktuning.evaluation.fewshot.prompts import STOP

MAX_RETRIES = 5
TIMEOUT_S = 60.0
AT_ONCE = 4  # requests
_CHARACTERS_PER_TOKEN = 4
_MORE_TOKENS = 4  # than the longest label has characters: for a space, or a full stop
_OPENAI = "https://api.openai.com/v1"


class _NoCompletionError(Exception):
    """A reply in another form than the interface has."""


class EndpointScorer:
    """A model at an endpoint, asked at temperature 0 for a text up to the next blank line.

    Args:
        client: an `openai.OpenAI`, or None to count only.
        errors: the exceptions that the client raises when its own retries are over.
        model: the name of the model there.
        base_url: the address of the endpoint.
        chat: whether to send a prompt as a chat message, not as a text to complete.
    """

    token_count = f"estimated: one for every {_CHARACTERS_PER_TOKEN} characters"

    def __init__(
        self,
        client: Any,
        errors: tuple[type[Exception], ...],
        model: str,
        base_url: str,
        chat: bool = False,
    ) -> None:
        self.client, self.model, self.chat = client, model, chat
        self.errors: tuple[type[Exception], ...] = (*errors, _NoCompletionError)
        self.identity = {"model": model, "at": base_url, "chat": chat}

    def count_tokens(self, prompts: Sequence[str], answers: Sequence[str]) -> int:
        return sum(-(-len(prompt) // _CHARACTERS_PER_TOKEN) for prompt in prompts)

    def ask(self, prompts: Sequence[str], answers: Sequence[str]) -> Iterator[tuple[int, str]]:
        """The place of each prompt and its answer, as they arrive.

        Raises:
            UsageError: after the first request that failed; no further ones are sent, and the
                answers to those that were under way come first.
        """
        limit = max(map(len, answers)) + _MORE_TOKENS
        failure: Exception | None = None
        stopped = threading.Event()

        def answer_of(prompt: str) -> str | None:
            if stopped.is_set():
                return None
            try:
                return self._answer(prompt, limit)
            except self.errors:
                stopped.set()
                raise

        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            places = {pool.submit(answer_of, prompt): i for i, prompt in enumerate(prompts)}
            for future in as_completed(places):
                try:
                    answer = future.result()
                except self.errors as error:
                    failure = failure or error
                    continue
                if answer is not None:
                    yield places[future], answer
        finally:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failure is not None:
            raise UsageError(
                f"{self.model}: the endpoint failed: {self._without_key(failure)}; the answers up "
                "to now are kept, so the same command continues from here"
            )

    def logits(self, answer: str, answers: Sequence[str]) -> list[float]:
        """0 for the label that the answer names, whatever its case and punctuation, else -inf."""
        found = LabelNames(answers).find(answer.strip()) if answer.strip() else None
        return [0.0 if i == found else float("-inf") for i in range(len(answers))]

    def _answer(self, prompt: str, max_tokens: int) -> str:
        usual = {"model": self.model, "temperature": 0, "stop": [STOP], "max_tokens": max_tokens}
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            reply = self.client.chat.completions.create(messages=messages, **usual)
        else:
            reply = self.client.completions.create(prompt=prompt, **usual)
        try:
            choice = reply.choices[0]
            text = choice.message.content if self.chat else choice.text
        except (AttributeError, IndexError, TypeError):
            raise _NoCompletionError(f"its reply is no completion: {str(reply)[:80]!r}") from None
        if text is None and self.chat:  # a refusal has no content
            return ""
        if not isinstance(text, str):
            raise _NoCompletionError(f"its reply is no completion: {str(reply)[:80]!r}")
        return text

    def _without_key(self, error: Exception) -> str:
        """What an error says, on one line; a server's message may repeat the key."""
        text, key = one_line(error), getattr(self.client, "api_key", None)
        return text.replace(key, "***")[:300] if isinstance(key, str) and key else text[:300]


def endpoint_scorer(options: FewShotArguments) -> EndpointScorer:
    """The endpoint that the flags and the environment name; without a client for a dry run.

    The key is read from the environment by the client, and nowhere written.

    Raises:
        UsageError: if the package openai is not installed, or there is no key.
    """
    base_url = options.fewshot_base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI
    model, chat = str(options.fewshot_model), options.fewshot_backend == "chat"
    if options.dry_run:
        return EndpointScorer(None, (), model, base_url, chat)
    try:
        import openai
    except ImportError as error:
        raise UsageError(f"{error.name} is missing: pip install 'masktuning[fewshot]'") from None
    try:
        client = openai.OpenAI(base_url=base_url, max_retries=MAX_RETRIES, timeout=TIMEOUT_S)
    except openai.OpenAIError:
        raise UsageError(
            "there is no key for the endpoint: set the environment variable OPENAI_API_KEY, to any "
            "text if the endpoint needs none"
        ) from None
    # A reply that is not JSON raises a ValueError.
    return EndpointScorer(client, (openai.OpenAIError, ValueError), model, base_url, chat)
