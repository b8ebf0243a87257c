"""What holds for every method of the registry: kills, micro-batches, processes, plain loading.

Each method trains by the command on a few generated pairs, with its stages if it has any.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)
from treebanks import write_treebank

from masktuning.demo import EMBEDDED
from masktuning.methods import METHODS, method_class

# Flags that a method cannot do without; TREEBANK stands for a file.
_BIASED = ("bias_product", "reweight", "learned_mixin", "confidence_regularization")
OPTIONS = {
    **dict.fromkeys(_BIASED, "--bias_model overlap"),
    "dependency_parsing": "--treebank TREEBANK",
    "intermediate_parsing": "--treebank TREEBANK --parsing_epochs 1",
}
SHARED = (
    "--task demo-pairs --max_train_samples 48 --max_eval_samples 8 --max_steps 3 --save_steps 1 "
    "--logging_steps 1 --disable_tqdm true --report_to none --use_cpu true --seed 5 "
    "--keep_optimizer_states --eval_strategy no --per_device_train_batch_size 16"
).split()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))
    words = [sys.executable, str(Path(__file__).parent / "command_server.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A small random BERT with the embedded tokenizer, with and without dropout."""
    return {
        dropout: save_model(tmp_path_factory.mktemp("model"), 0.1 if dropout else 0.0)
        for dropout in (True, False)
    }


def save_model(folder, dropout):
    config = BertConfig.from_pretrained(EMBEDDED)
    config.update(
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_dropout_prob": dropout,
            "attention_probs_dropout_prob": dropout,
        }
    )
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return str(folder)


def train(server, model, name, folder, *words, expect=0, **job):
    """Runs the command, which must end with the exit code `expect`; what it printed."""
    flags = ["--method", name, "--model_name_or_path", model, "--output_dir", str(folder)]
    needed = OPTIONS.get(name, "")
    if "TREEBANK" in needed:
        treebank = write_treebank(folder.parent / "treebank.conllu", 48)
        needed = needed.replace("TREEBANK", str(treebank))
    argv = [*flags, *SHARED, *needed.split(), *words]
    log = folder.parent / f"{folder.name}.log"
    server.stdin.write(json.dumps({"argv": argv, "log": str(log), **job}) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    printed = log.read_text()
    assert code == expect, printed[-3000:]
    return printed


def weights(folder):
    """All tensors that a run saved."""
    found = {}
    for path in sorted(folder.glob("**/*.safetensors")):
        place = path.relative_to(folder)
        if place.parts[0] in ("", "model.safetensors", "mlm_head", "method"):
            found |= {f"{place}:{key}": value for key, value in load_file(path).items()}
    return found


def assert_close(folder, other, tolerance):
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys() and one
    for key, value in one.items():
        np.testing.assert_allclose(value, two[key], rtol=tolerance, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_with_the_same_bits(server, models, name, tmp_path):
    """Killed in each stage and in the run itself; a stage that is complete is not done again."""
    method = method_class(name)
    stages = [stage.name for stage in method.stages(method.Options())]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(server, models[True], name, whole)
    for done in range(len(stages) + 1):
        # In its second step; two steps of the training that was killed before come first.
        kill_at = 4 if done else 2
        train(server, models[True], name, broken, expect=-9, kill_at=kill_at)
        made = [stage for stage in stages if (broken / "stages" / stage / "README.md").is_file()]
        assert made == stages[:done]
        (broken.parent / "broken.log").unlink()
    printed = train(server, models[True], name, broken, "--resume_from_checkpoint")
    assert "stage of" not in printed
    one, two = weights(whole), weights(broken)
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.equal(value, two[key]), key
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        whole, output_loading_info=True
    )
    assert not any(report.values()) and loaded.config.num_labels == 2


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_and_processes_change_nothing(server, models, name, tmp_path):
    sgd = ("--optim", "sgd", "--learning_rate", "0.5")
    one, four, two = (tmp_path / folder for folder in ("one", "four", "two"))
    train(server, models[False], name, one, *sgd)
    start, end = load_file(f"{models[False]}/model.safetensors"), weights(one)
    moved = [end[f"model.safetensors:{k}"] - v for k, v in start.items() if k.startswith("bert.")]
    assert max(float(change.abs().max()) for change in moved) > 1e-3  # ten times the tolerance
    small = ("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4")
    train(server, models[False], name, four, *sgd, *small)
    assert_close(one, four, 1e-4)
    half = ("--per_device_train_batch_size", "8")
    train(server, models[False], name, two, *sgd, *half, port=free_port())
    assert_close(one, two, 1e-4)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
