"""The ONNX file gives PyTorch's logits, on other texts than the command checks it with."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from families import tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from masktuning import export
from masktuning.config.errors import UsageError
from masktuning.modeling import onnx_export

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_logits_are_pytorch_s(family, tmp_path, capsys):
    model = tiny_model(family).classifier
    model.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    export.main(["--output_dir", str(tmp_path), "--format", "onnx"])
    assert "model.onnx" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    texts = ["w1 w2 w3 w4 w5 w6 w7 w8 w9", "w1", "w20 w30", "w4 w4"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    names = {one.name for one in session.get_inputs()}
    (logits,) = session.run(["logits"], {k: v.numpy() for k, v in batch.items() if k in names})
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = stock(**batch).logits
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob(".onnx-*"))


def test_the_file_goes_where_it_is_said(tmp_path, capsys):
    model = tmp_path / "model"
    tiny_model("bert").classifier.save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    file = tmp_path / "served.onnx"
    export.main(["--model_name_or_path", str(model), "--output_file", str(file)])
    assert file.is_file() and str(file) in capsys.readouterr().out
    assert not list(model.glob("*.onnx"))
    with pytest.raises(UsageError, match="nowhere: no such folder to write"):
        export.main(["--output_dir", str(model), "--output_file", str(tmp_path / "nowhere/a.onnx")])


def test_large_weights_are_in_a_file_next_to_it(tmp_path, monkeypatch):
    """As torch writes models of more than 1.5 GB; exporting again leaves no other files."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    tiny_model("bert").classifier.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    for _ in range(2):
        file, largest = onnx_export.export(tmp_path)
        assert file == tmp_path / "model.onnx" and largest < 1e-3
        new = {path.name for path in tmp_path.iterdir()} - before
        assert new == {"model.onnx", "model.onnx.data"}


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    tiny_model("bert").classifier.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    trace = onnx_export._trace

    def of_another(model, tokenizer, path):
        trace(tiny_model("bert", seed=1).classifier.eval(), tokenizer, path)

    monkeypatch.setattr(onnx_export, "_trace", of_another)
    with pytest.raises(UsageError, match="differ from PyTorch's by"):
        export.main(["--output_dir", str(tmp_path)])
    assert not list(tmp_path.glob("*.onnx")) and not list(tmp_path.glob(".onnx-*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--model_name_or_path is missing"),
        (["--output_dir", "nowhere"], "nowhere: holds no classifier"),
        (["--output_dir", "nowhere", "--format", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_errors_are_one_sentence(words, message):
    command = [sys.executable, "-m", "masktuning.export", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
