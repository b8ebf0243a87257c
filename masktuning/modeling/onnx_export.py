"""A classifier as an ONNX file whose logits were compared with PyTorch's."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from masktuning.config.errors import UsageError, one_line
from masktuning.modeling.loading import load_classifier

FILE = "model.onnx"
_TOLERANCE = 1e-3  # of the largest logit: onnxruntime sums float32 values in another order
_TRACED = ["a fine film", "a long , boring story about nothing at all"]
# Batches whose sizes and lengths differ from those of the traced one.
_COMPARED = [["good"], ["bad , bad", "what a lovely and warm comedy this was , truly", "x y z"]]


def export(folder: Path, file: Path | None = None) -> tuple[Path, float]:
    """Writes `file`, or model.onnx in `folder`; returns its path and the largest difference.

    The difference is that of its logits and PyTorch's, relative to the largest logit. The weights
    of a classifier of more than 1.5 GB are in another file, with `.data` added to the name: one
    ONNX file holds 2 GB at most.

    Raises:
        UsageError: if the file's folder is missing, onnxruntime or onnxscript is not installed, the
            folder holds no classifier, its family cannot be traced, or the file's logits are not
            PyTorch's.
    """
    onnxruntime = _import_onnxruntime()
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: holds no classifier (no config.json)")
    file = file or folder / FILE
    if not file.parent.is_dir():
        raise UsageError(f"{file.parent}: no such folder to write {file.name} to")
    model, tokenizer = load_classifier(str(folder))
    model = model.eval()
    # The first file names the second one, so both have their final names in a folder of their own.
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=file.parent) as place:
        written = Path(place) / file.name
        _trace(model, tokenizer, written)
        session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
        largest = max(_difference(session, model, tokenizer, texts) for texts in _COMPARED)
        if not largest < _TOLERANCE:
            raise UsageError(
                f"{folder}: the exported logits differ from PyTorch's by {largest:.1e}"
            )
        for one in sorted(Path(place).iterdir(), reverse=True):  # the weights before their user
            os.replace(one, file.parent / one.name)
    return file, largest


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch.onnx needs it, and its own error is less clear
    except ImportError as error:
        raise UsageError(f'{error.name} is missing: pip install "masktuning[onnx]"') from None
    return onnxruntime


def _trace(model: Any, tokenizer: Any, path: Path) -> None:
    """Writes the classifier to `path`, with free sizes of batch and length."""
    batch = tokenizer(_TRACED, padding=True, return_tensors="pt")
    names = list(batch)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    try:
        # The exporter reports its progress, and warns of things that do not concern classifiers.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _Logits(model, names),
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


class _Logits(torch.nn.Module):
    """A classifier that takes its inputs by position and returns nothing but the logits."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self.names, inputs, strict=True))
        return self.model(**named, return_dict=True).logits


def _difference(session: Any, model: Any, tokenizer: Any, texts: list[str]) -> float:
    """The largest difference of the logits, relative to the largest of PyTorch's."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    wanted = {one.name for one in session.get_inputs()}
    (exported,) = session.run(None, {k: v.numpy() for k, v in batch.items() if k in wanted})
    with torch.no_grad():
        logits = model(**batch).logits
    difference = (torch.from_numpy(exported) - logits).abs().max()
    return float(difference / logits.abs().max().clamp(min=1.0))
