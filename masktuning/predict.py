"""Predict the labels of new texts with any classifier checkpoint, of this package or not.

    python -m masktuning.predict --model_name_or_path out --input_file texts.csv
    python -m masktuning.predict --model_name_or_path out --input_file pairs.jsonl \\
        --text_column_names premise,hypothesis --output_file labelled.jsonl

Reads CSV, TSV, JSON Lines or Parquet piece by piece, so that the file may be larger than the
memory, and writes CSV or JSON Lines: the columns of the input, the predicted label and the
probability of each label. A run that was stopped goes on when the same command is given again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.imports import heavy_imports
from masktuning.config.options import ClassifierArguments
from masktuning.config.parser import build_parser, parse, run_command, wants_help

PROGRAM = "python -m masktuning.predict"
_FORMATS = (".csv", ".jsonl")


@dataclass
class PredictionArguments(ClassifierArguments):
    """What to predict, and where to."""

    _argument_group_name = "prediction"

    input_file: str | None = field(
        default=None, metadata={"help": "Texts: .csv, .tsv, .jsonl or .parquet; no labels needed."}
    )
    output_file: str | None = field(
        default=None,
        metadata={
            "help": "File to write, .csv or .jsonl; by default the input's name with _predictions "
            "before the extension, as CSV unless the input is .jsonl."
        },
    )
    text_column_names: str | None = field(
        default=None,
        metadata={
            "help": "One text column, or two with a comma between them; by default text, sentence, "
            "or a usual pair of names."
        },
    )
    max_seq_length: int = field(
        default=128, metadata={"help": "Texts are truncated to this many tokens."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU unused."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an existing output file."})
    disable_tqdm: bool = field(default=False, metadata={"help": "Show no progress bar."})


def main(argv: list[str]) -> None:
    """Predicts what the flags say; see the top of this file."""
    parser = build_parser(PROGRAM, __doc__ or "", [PredictionArguments])
    if wants_help(argv):
        parser.print_help()
        return
    (arguments,) = parse(parser, argv, {})
    output = _check(arguments)
    with heavy_imports():
        from masktuning.data.custom_task import named_columns
        from masktuning.evaluation.stream_predictions import PredictionJob, predict_file

    rows = predict_file(
        PredictionJob(
            model=arguments.model_name_or_path,
            input_file=Path(arguments.input_file),
            output_file=output,
            text_columns=named_columns(arguments.text_column_names),
            label_names=arguments.label_names,
            max_length=arguments.max_seq_length,
            batch_size=arguments.per_device_eval_batch_size,
            tokenizer_name=arguments.tokenizer_name,
            revision=arguments.model_revision,
            use_cpu=arguments.use_cpu,
            progress=not arguments.disable_tqdm,
        )
    )
    print(f"{output}: the predicted labels of {rows:,} texts")


def _check(arguments: PredictionArguments) -> Path:
    """The output file; UsageError for flags that are missing or out of range."""
    if arguments.model_name_or_path is None:
        raise UsageError("--model_name_or_path is missing: a checkpoint folder or a hub id")
    if arguments.input_file is None:
        raise UsageError("--input_file is missing: the file of the texts")
    if arguments.max_seq_length < 1 or arguments.per_device_eval_batch_size < 1:
        raise UsageError("--max_seq_length and --per_device_eval_batch_size must be 1 or more")
    source = Path(arguments.input_file)
    suffix = ".jsonl" if source.suffix == ".jsonl" else ".csv"
    output = Path(arguments.output_file or source.with_name(f"{source.stem}_predictions{suffix}"))
    if output.suffix not in _FORMATS:
        raise UsageError(f"--output_file {output}: use one of {', '.join(_FORMATS)}")
    if output.exists() and not arguments.overwrite:
        raise UsageError(f"{output} exists: give another --output_file, or --overwrite")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError("--output_file and --input_file are the same file: give another one")
    return output


if __name__ == "__main__":
    run_command(main)
