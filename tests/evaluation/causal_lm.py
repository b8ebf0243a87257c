"""A tiny random GPT-2 whose tokens are bytes, and a few words with the space before them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ("yes", "no", "neutral", "not", "positive")


def byte_tokenizer(length: int, begins: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2 has it, with merges for `WORDS` alone.

    With `begins` every text begins with the token <s>, as with Llama's tokenizer.
    """
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        token = "Ġ"  # GPT-2's sign for a space
        for letter in word:
            if token + letter not in vocab:
                merges.append((token, letter))
                vocab[token + letter] = len(vocab)
            token += letter
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if not begins:
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length)
    backend.add_special_tokens(["<s>"])
    start = ("<s>", backend.token_to_id("<s>"))
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=length, bos_token="<s>"
    )


def save_causal_lm(folder: Path, length: int = 1024, seed: int = 0) -> Path:
    """A checkpoint folder; its weights are large enough for likelihoods that differ clearly."""
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(length)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=length,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
