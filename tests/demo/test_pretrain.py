"""Pretraining, on a tiny scale: from text files to an ordinary masked LM."""

import gzip
import json
import os
import subprocess
import sys
from itertools import chain, pairwise
from random import Random

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from test_corpus import SHARE, write_corpus
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from masktuning.config.errors import UsageError
from masktuning.demo import export
from masktuning.demo.pretrain import __main__ as pretrain
from masktuning.demo.pretrain import loop as pretraining
from masktuning.demo.pretrain import prepare
from masktuning.demo.pretrain.corpus import Windows, documents, is_held_out, packed_file


def command(corpus, folder, **options):
    settings = {
        "held_out_share": SHARE,
        "vocab_size": 90,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 2,
        "max_length": 32,
        "batch_size": 16,
        "max_steps": 12,
        "warmup_steps": 4,
        "logging_steps": 4,
        "eval_steps": 5,
        "save_steps": 4,
        **options,
    }
    words = ["--corpus", str(corpus), "--output_dir", str(folder)]
    for name, value in settings.items():
        words += [f"--{name}", str(value)]
    return words


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "text.txt")


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "out"
    pretrain.main(command(corpus, folder, max_steps=150, eval_steps=1000, save_steps=1000))
    return folder


def test_the_loss_falls_and_the_metrics_say_so(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    first, last = metrics["evaluations"][0], metrics["final"]
    assert metrics["steps"] == 150 and metrics["starts"] == 1 and metrics["seconds"] > 0
    # By 1.4 to 1.8, depending on the CPU: rounding affects the initial word vectors.
    assert last["loss"] < first["loss"] - 0.7
    assert last["accuracy"] > max(first["accuracy"], last["unigram_accuracy"]) + 0.25
    assert last["perplexity"] == pytest.approx(np.exp(last["loss"]))
    assert str(finished.parent) not in json.dumps(metrics)  # no absolute paths


def test_plain_transformers_loads_it(finished):
    model = AutoModelForMaskedLM.from_pretrained(finished).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished)
    ids = tokenizer("Wordc wordd [MASK] wordf wordg", return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(ids.input_ids[0])[:2] == ["[CLS]", "wordc"]
    assert model(**ids).logits.shape == (1, 7, len(tokenizer))
    assert tokenizer("a", "b").token_type_ids[-1] == 1
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    AutoModelForSequenceClassification.from_pretrained(finished)


def test_the_exported_checkpoint_is_small_and_its_card_says_what_was_measured(finished, tmp_path):
    metrics = export.export(finished, tmp_path / "checkpoint")
    weights = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    exported, final = metrics["exported"], metrics["final"]
    # float16 weights in float32 against bf16 arithmetic: near ties move the accuracy, not the loss.
    assert exported["loss"] == pytest.approx(final["loss"], rel=0.01)
    assert metrics["untrained"]["accuracy"] < exported["accuracy"] - 0.1
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert f"| {100 * exported['accuracy']:.1f} % | {exported['perplexity']:.1f} |" in card
    assert "$" not in card and str(finished.parent) not in card
    assert "--hidden_size 32" in card and "--seed" not in card  # what differs from the defaults
    ids = AutoTokenizer.from_pretrained(tmp_path / "checkpoint")(
        "wordc [MASK]", return_tensors="pt"
    )
    AutoModelForMaskedLM.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)(**ids)
    with pytest.raises(UsageError, match="holds no state and held-out text"):
        export.main(["--run_dir", str(tmp_path), "--output", str(tmp_path / "other")])


def test_two_processes_give_what_one_gives(corpus, tmp_path):
    """They share each batch, and the loss is a mean over the whole batch; only rounding differs."""
    # One thread per process: the rounding of the initial weights depends on their number.
    python, module = [sys.executable], ["-m", "masktuning.demo.pretrain"]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for name, launcher in (("one", []), ("two", torchrun)):
        words = [*python, *launcher, *module, *command(corpus, tmp_path / name, precision="fp32")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("step 12/12") == 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        if not name.endswith("key.bias"):  # softmax cancels it, so Adam divides noise by noise
            apart = ~torch.isclose(one[name], two[name], atol=1e-5, rtol=1e-4)
            # Any other weight whose gradient happens to be nothing but rounding may move too.
            assert int(apart.sum()) <= 1 + apart.numel() // 1000, name


class KilledError(Exception):
    """Stands for a kill: the run does nothing more."""


def test_killed_and_resumed_is_bit_equal_to_uninterrupted(corpus, tmp_path, monkeypatch, capsys):
    pretrain.main(command(corpus, tmp_path / "whole"))
    step = pretraining._Run.step

    def killed(self, number, batches):
        if number == 6:  # two steps behind the newest state
            raise KilledError
        return step(self, number, batches)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining._Run, "step", killed)
        with pytest.raises(KilledError):
            pretrain.main(command(corpus, tmp_path / "killed"))
    stale = tmp_path / "killed" / ".state-3.partial"
    stale.mkdir()  # from an earlier kill, while a state was written
    capsys.readouterr()
    pretrain.main(command(corpus, tmp_path / "killed", logging_steps=3))
    assert not stale.exists()
    assert "resuming after step 4" in capsys.readouterr().out
    one, two = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    one, two = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "killed")
    )
    assert one["evaluations"] == two["evaluations"] and (one["starts"], two["starts"]) == (1, 2)


def test_a_finished_run_stays_as_it_is_and_a_longer_one_resumes_it(corpus, tmp_path, capsys):
    pretrain.main(command(corpus, tmp_path, max_steps=4))
    weights = (tmp_path / "model.safetensors").read_bytes()
    pretrain.main(command(corpus, tmp_path, max_steps=4))
    assert (tmp_path / "model.safetensors").read_bytes() == weights
    pretrain.main(command(corpus, tmp_path, max_steps=6))
    assert (tmp_path / "model.safetensors").read_bytes() != weights
    with pytest.raises(
        UsageError, match=r"a run with --learning_rate 0\.002, not 0\.1: give 0\.002, another"
    ):
        pretrain.main(command(corpus, tmp_path, learning_rate=0.1))
    with pytest.raises(UsageError, match="a run of 6 steps, more than --max_steps 5"):
        pretrain.main(command(corpus, tmp_path, max_steps=5))
    pretrain.main(command(corpus, tmp_path, max_steps=4) + ["--overwrite", "true"])
    assert (tmp_path / "model.safetensors").read_bytes() == weights


def test_held_out_text_is_never_trained_on(corpus, tmp_path, monkeypatch):
    texts = list(documents([str(corpus)], False, SHARE))
    held = list(documents([str(corpus)], True, SHARE))
    assert len(texts) + len(held) == 300 and 10 < len(held) < 60
    assert all(is_held_out(text, SHARE) for text in held) and not set(held) & set(texts)
    seen = []
    read = Windows.read

    def recording(self, ids, shift=0):
        rows = read(self, ids, shift)
        seen.append((self.tokens.filename, rows))
        return rows

    monkeypatch.setattr(Windows, "read", recording)
    taught = []
    teach = prepare.train_tokenizer

    def listening(texts, *rest):
        taught.append(list(texts()))
        return teach(texts, *rest)

    monkeypatch.setattr(prepare, "train_tokenizer", listening)
    step = pretraining._Run.step
    monkeypatch.setattr(
        pretraining._Run, "step", lambda *a: (seen.append(("step", 0)), step(*a))[1]
    )
    pretrain.main(command(corpus, tmp_path, max_steps=30))
    assert taught == [texts]
    trained = [later for (name, _), later in pairwise(seen) if name == "step"]
    assert len(trained) == 30
    assert {name.name for name, _ in trained} == {"train.u16"}
    # Each document has a number, so its tokens tell which documents a file holds.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for name, expected in (("train", texts), ("held_out", held)):
        ids = np.fromfile(packed_file(tmp_path, name), np.uint16).tolist()
        whole = [tokenizer(text, add_special_tokens=False).input_ids + [3] for text in expected]
        assert ids == list(chain.from_iterable(whole))


def test_a_run_that_diverges_stops_and_keeps_its_last_good_state(corpus, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def rate(step, arguments):
        return 1e9 if step >= 5 else 1e-3

    monkeypatch.setattr(pretraining, "learning_rate", rate)
    with pytest.raises(UsageError, match=r"the loss is (nan|inf) at step 8"):
        pretrain.main(command(corpus, out))
    assert [path.name for path in out.glob("state-*")] == ["state-4"]
    state = AutoModelForMaskedLM.from_pretrained(out / "state-4")
    assert all(tensor.isfinite().all() for tensor in state.state_dict().values())


def test_a_run_made_shorter_is_measured_at_its_end(corpus, tmp_path):
    out = tmp_path / "out"
    pretrain.main(command(corpus, out, max_steps=5, save_steps=4))
    pretrain.main(command(corpus, out, max_steps=9, save_steps=4))
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["evaluations"][-1]["step"] == 9
    assert metrics["final"] == {k: v for k, v in metrics["evaluations"][-1].items() if k != "step"}


def test_the_run_s_own_folder_is_no_place_to_export_to(finished):
    with pytest.raises(UsageError, match="is the run's own folder"):
        export.main(["--run_dir", str(finished), "--output_dir", f"{finished}/../{finished.name}"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "nowhere.txt"}, "nowhere.txt: no such corpus file"),
        ({"corpus": "empty.txt"}, "empty.txt: holds no text; give one document per line"),
        ({"corpus": "binary.txt"}, "binary.txt, line 1: not UTF-8"),
        ({"corpus": "late.txt"}, "late.txt, line 4001: not UTF-8"),
        ({"corpus": "text.gz"}, "text.gz: cannot be read after line 0"),
        ({"corpus": "cut.txt.gz"}, r"cut.txt.gz: cannot be read after line \d+ .*ended before"),
        ({"corpus": "short.txt"}, "too little text: "),
        ({"mask_rate": 0}, "--mask_rate must lie between 0 and 1"),
        ({"num_heads": 3}, "--hidden_size 32 must be a multiple of --num_heads 3"),
        ({"max_steps": 0}, "--max_steps must be 1 or more"),
        ({"vocab_size": 70000}, "--vocab_size must be 8 to 65536"),
        ({"seed": -1}, "--seed must be 0 or more, not -1"),
        ({"weight_decay": -0.1}, "--weight_decay must be 0 or more"),
        ({"learning_rate": 0}, "--learning_rate must be above 0"),
        ({"hiden_size": 16}, "did you mean"),
    ],
)
def test_usage_errors_are_one_sentence(corpus, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "late.txt").write_bytes(b"some words\n" * 4000 + b"\xff\n")
    (tmp_path / "text.gz").write_text("not gzipped")
    lines = "".join(f"{Random(i).random()}\n" for i in range(4000))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(lines.encode())[:-500])
    (tmp_path / "short.txt").write_text("one line\n")
    words = command(options.pop("corpus", corpus), "out", **options)
    with pytest.raises(UsageError, match=message) as caught:
        pretrain.main(words)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_command_exits_with_2_and_helps_without_torch(tmp_path):
    run = [sys.executable, "-m", "masktuning.demo.pretrain"]
    for words in (["--corpus", "nowhere.txt", "--output", "out"], ["--corpus", "nowhere.txt"]):
        done = subprocess.run([*run, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    code = (
        "import sys; from masktuning.demo.pretrain.__main__ import main; main(['--help']); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--output_dir" in done.stdout, done.stderr
