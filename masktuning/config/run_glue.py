"""Answers to flags of run_glue.py and of earlier Trainers that the commands do not have.

A flag is looked up here only if the command does not know it, so that a version of transformers
that still has it goes on working.
"""

from __future__ import annotations

from collections.abc import Iterable

from masktuning.config.errors import UsageError

_HUB_TOKEN = (
    "set the environment variable HF_TOKEN, or run `hf auth login` once; other users of the "
    "machine can read the flags of a command"
)
_BATCH_SIZE = "give --per_device_{}_batch_size"

# Flags that are refused, and what to do instead.
REFUSED = {
    "adafactor": "give --optim adafactor",
    "cache_dir": "set the environment variable HF_HOME to a folder; models, data sets and "
    "tokenised texts are then kept there",
    "config_name": "the configuration is always that of --model_name_or_path; leave this flag out",
    "do_regression": "only classification is supported, not regression",
    "evaluation_strategy": "transformers renamed it; give --eval_strategy",
    "fp16_opt_level": "apex is not used; give --fp16 or --bf16",
    "half_precision_backend": "PyTorch's own mixed precision is used; give --fp16 or --bf16",
    "logging_dir": "transformers dropped it; set the environment variable TENSORBOARD_LOGGING_DIR",
    "max_predict_samples": "give --max_eval_samples, which holds for every set that is measured",
    "no_cuda": "transformers renamed it; give --use_cpu",
    "per_gpu_eval_batch_size": _BATCH_SIZE.format("eval"),
    "per_gpu_train_batch_size": _BATCH_SIZE.format("train"),
    "push_to_hub_model_id": "transformers renamed it; give --hub_model_id",
    "push_to_hub_token": _HUB_TOKEN,
    "token": _HUB_TOKEN,
    "trust_remote_code": "code from the hub is never run, because the two heads share an encoder "
    "whose inner structure must be known; use a model family that transformers has",
    "use_auth_token": _HUB_TOKEN,
}
# Flags that are accepted where they are true, because it is always so, and what to say otherwise.
ALWAYS_TRUE = {
    "group_by_length": "give --train_sampling_strategy random for batches of random texts",
    "save_safetensors": "weights are always written as safetensors",
    "use_fast_tokenizer": "transformers 5 has fast tokenizers only",
}


def refuse(names: Iterable[str], known: set[str]) -> None:
    """Raises UsageError with the answer to the first of `names` that has one."""
    for name in names:
        if name not in known and name in REFUSED:
            raise UsageError(f"--{name} is not a flag here: {REFUSED[name]}")
