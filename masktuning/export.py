"""Export a run's classifier to ONNX, checked against PyTorch before it is kept.

    pip install "masktuning[onnx]"
    python -m masktuning.export --model_name_or_path out --format onnx
    python -m masktuning.export --model_name_or_path out --output_file served/model.onnx

Writes model.onnx next to the classifier, or the file that is named. Its inputs are the int64 arrays
[batch, length] that the tokenizer gives, its output are the logits [batch, labels]; batch and
length are free. The file is run with onnxruntime on texts of several lengths, and kept only if its
logits equal PyTorch's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from masktuning.config.errors import UsageError
from masktuning.config.parser import build_parser, parse, run_command, wants_help

PROGRAM = "python -m masktuning.export"


@dataclass
class ExportArguments:
    """What to export, and to which format."""

    _argument_group_name = "export"

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a run, or of any classifier checkpoint.",
            "aliases": ["--output_dir"],
        },
    )
    output_file: str | None = field(
        default=None, metadata={"help": "The file to write; by default model.onnx in that folder."}
    )
    format: str = field(
        default="onnx", metadata={"help": "Format of the file.", "choices": ["onnx"]}
    )


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [ExportArguments])
    if wants_help(argv):
        parser.print_help()
        return
    (arguments,) = parse(parser, argv, {})
    if not arguments.model_name_or_path:
        raise UsageError("--model_name_or_path is missing: the folder of a run")
    from masktuning.modeling.onnx_export import export

    file = Path(arguments.output_file) if arguments.output_file else None
    path, difference = export(Path(arguments.model_name_or_path), file)
    print(f"{path}: its logits differ from PyTorch's by {difference:.1e} at most")


if __name__ == "__main__":
    run_command(main)
