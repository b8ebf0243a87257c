"""The flags of few-shot prompting, and which other flags they go with; imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields

from masktuning.config.errors import UsageError
from masktuning.config.options import DataArguments

LOCAL = "local"
BACKENDS = (LOCAL, "completions", "chat")
# Flags of classifiers, and what takes their place here.
_OF_CLASSIFIERS = {
    "model_name_or_path": "name the language model with --fewshot_model",
    "label_names": "the labels are those of the training set",
    "max_seq_length": "texts are not truncated in prompts",
}


@dataclass
class FewShotArguments:
    """Few-shot prompting of a language model, with --predictor fewshot."""

    _argument_group_name = "few-shot prompting"

    fewshot_model: str | None = field(
        default=None,
        metadata={
            "help": "Folder or hub id of a causal language model, or the name of a model at an "
            "endpoint."
        },
    )
    fewshot_backend: str = field(
        default=LOCAL,
        metadata={
            "help": "local compares the likelihoods of the labels in this process; completions and "
            "chat ask an OpenAI-compatible endpoint for an answer, as a text to complete or as a "
            "message.",
            "choices": [*BACKENDS],
        },
    )
    fewshot_base_url: str | None = field(
        default=None,
        metadata={
            "help": "URL of the endpoint; by default that of the environment variable "
            "OPENAI_BASE_URL, or else OpenAI's. The key is that of OPENAI_API_KEY."
        },
    )
    shots: int = field(default=16, metadata={"help": "Solved examples in each prompt, per label."})
    seed: int = field(
        default=42, metadata={"help": "Seed by which the solved examples are chosen."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Show how many prompts and tokens there are, and ask nothing."},
    )

    def __post_init__(self) -> None:
        if self.shots < 1:
            raise ValueError(f"shots is {self.shots}: give 1 or more")


def check_flags(
    predictor: str,
    given: Collection[str],
    options: FewShotArguments,
    data: DataArguments,
    output_dir: str | None,
) -> None:
    """Raises UsageError for flags that do not go with the predictor, or that it lacks.

    `given` has the names of the flags on the command line, without dashes.
    """
    if predictor != "fewshot":
        own = [f"--{one.name}" for one in fields(FewShotArguments) if one.name in given]
        if own:
            raise UsageError(f"{own[0]} is for --predictor fewshot: add that, or leave it out")
        return
    for name, instead in _OF_CLASSIFIERS.items():
        if name in given:
            raise UsageError(f"--{name} is not for --predictor fewshot: {instead}")
    if options.fewshot_model is None:
        raise UsageError("--fewshot_model is missing: a folder, a hub id, or an endpoint's model")
    _check_backend(given, options)
    _check_data(data)
    if not (output_dir or options.dry_run):
        raise UsageError("--predictor fewshot needs --output_dir: the folder for its answers")


def _check_backend(given: Collection[str], options: FewShotArguments) -> None:
    local = options.fewshot_backend == LOCAL
    if local and options.fewshot_base_url is not None:
        raise UsageError("--fewshot_base_url needs --fewshot_backend completions or chat")
    of_local = ("model_revision", "tokenizer_name", "per_device_eval_batch_size")
    for name in () if local else of_local:
        if name in given:
            raise UsageError(f"--{name} is for --fewshot_backend {LOCAL}: leave it out")


def _check_data(data: DataArguments) -> None:
    """There must be one training set, and something to label."""
    own = data.train_file or data.dataset_name
    if data.task and (own or data.validation_file):
        raise UsageError(
            "--task brings its own training set: name further files in --eval_files, or leave "
            "--task out"
        )
    if not (data.task or own):
        raise UsageError(
            "few-shot prompting shows examples of a training set: give --task, or --train_file"
        )
    if not (data.task or data.dataset_name or data.validation_file) and not (
        data.eval_files or data.test_file
    ):
        raise UsageError("there are no texts to label: give --eval_files or --test_file")
