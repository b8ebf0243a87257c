"""A run's classifier as one ONNX file, checked against PyTorch before it is kept.

    pip install "masktuning[onnx]"
    python -m masktuning.export --output_dir out --to onnx

Writes model.onnx beside the classifier: inputs [batch, length] int64 as the tokenizer gives them,
output logits [batch, labels], both sizes free. It is run with onnxruntime on texts of several
lengths; where its logits differ from PyTorch's nothing is kept.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masktuning.config.errors import UsageError, one_line
from masktuning.config.parser import build_parser, parse, run_command

PROGRAM = "python -m masktuning.export"
FILE = "model.onnx"
_TOLERANCE = 1e-3  # of the largest logit; another order of summation, in float32
# Lengths and batches that differ from those it was traced with.
_TRACED = ["a fine film", "a long , boring story about nothing at all"]
_CHECKED = [["good"], ["bad , bad", "what a lovely and warm comedy this was , truly", "x y z"]]


@dataclass
class ExportArguments:
    """What to export, to what."""

    _argument_group_name = "export"

    output_dir: str | None = field(
        default=None, metadata={"help": "A run folder, or any classifier checkpoint's folder."}
    )
    to: str = field(default="onnx", metadata={"help": "Format.", "choices": ["onnx"]})


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [ExportArguments])
    if "-h" in argv or "--help" in argv:
        parser.print_help()
        return
    (arguments,) = parse(parser, argv, {})
    if not arguments.output_dir:
        raise UsageError("--output_dir is missing: the folder of a run")
    path, error = export(Path(arguments.output_dir))
    print(f"{path}: its logits differ from PyTorch's by {error:.1e} at most")


def export(folder: Path) -> tuple[Path, float]:
    """Writes `folder`/model.onnx; returns its path and the largest difference of its logits.

    Raises:
        UsageError: if the extra is not installed, the folder holds no classifier, its family
            cannot be traced, or the file's logits are not PyTorch's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it, and would say so less clearly
    except ImportError as error:
        raise UsageError(f'{error.name} is missing: pip install "masktuning[onnx]"') from None
    from masktuning.evaluation.predict import load_classifier

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: holds no classifier (no config.json)")
    _, model, tokenizer = load_classifier(str(folder), batch_size=1)
    partial = folder / f".{FILE}.partial"
    try:
        _trace(model.eval().cpu(), tokenizer, partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        largest = max(_difference(session, model, tokenizer, texts) for texts in _CHECKED)
        if not largest < _TOLERANCE:
            raise UsageError(
                f"{folder}: the exported logits differ from PyTorch's by {largest:.1e}"
            )
        os.replace(partial, folder / FILE)
    finally:
        partial.unlink(missing_ok=True)
    return folder / FILE, largest


def _trace(model: Any, tokenizer: Any, path: Path) -> None:
    import torch

    batch = tokenizer(_TRACED, padding=True, return_tensors="pt")
    names = list(batch)

    class Logits(torch.nn.Module):
        """The classifier with its inputs in a fixed order and nothing but logits out."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            named = dict(zip(names, inputs, strict=True))
            return self.model(**named, return_dict=True).logits

    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        # The exporter reports its progress, and warns of what other models would need.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Logits(),
                tuple(batch[name] for name in names),
                str(path),
                input_names=names,
                output_names=["logits"],
                dynamic_shapes=(tuple(sizes for _ in names),),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        family = model.config.model_type
        raise UsageError(f"{family} cannot be exported: {one_line(error)[:300]}") from None


def _difference(session: Any, model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The largest difference of logits, relative to the largest of PyTorch's."""
    import torch

    batch = tokenizer(texts, padding=True, return_tensors="pt")
    wanted = {one.name for one in session.get_inputs()}
    (exported,) = session.run(None, {k: v.numpy() for k, v in batch.items() if k in wanted})
    with torch.no_grad():
        logits = model(**batch).logits
    difference = (torch.from_numpy(exported) - logits).abs().max()
    return float(difference / logits.abs().max().clamp(min=1.0))


if __name__ == "__main__":
    run_command(main)
