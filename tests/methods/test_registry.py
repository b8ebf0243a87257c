"""Methods of other packages: found through the entry point group, and told apart when broken."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from families import save_tiny
from safetensors.torch import load_file

from masktuning.config.errors import UsageError
from masktuning.methods import METHODS, method_class, names, options_by_method
from masktuning.methods.base import Method
from masktuning.methods.requirements import FEATURES
from masktuning.training.backward import backward_each, backward_joint

# A method with an option, a parameter of its own, a column, two losses, two earlier stages, advice.
SCALED = """
from dataclasses import dataclass, field
from pathlib import Path

import torch
from masktuning.data.example_ids import with_column
from masktuning.methods.base import Method, Stage


@dataclass
class ScaledOptions:
    strength: float = field(default=0.5, metadata={"help": "How much the scale counts."})

    def check(self):
        if self.strength < 0:
            raise ValueError(f"strength is {self.strength}: give 0 or more")


class Scaled(Method):
    Options = ScaledOptions
    terms = ("cls", "scale")
    paper = "Nobody, 2026"

    def __init__(self, model, tokenizer, options):
        super().__init__(model, tokenizer, options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    @classmethod
    def stages(cls, options):
        return [
            Stage("teacher", "finetuning", {"max_steps": 2}),
            Stage("student", "finetuning", {"max_steps": 1}, starts_from="teacher"),
        ]

    @classmethod
    def starts_from(cls, options):
        return "student"

    def prepare(self, train, cache):
        assert (Path(cache) / "teacher" / "model.safetensors").is_file()
        return with_column(train, "twice", [2 * i for i in range(len(train))])

    def collate(self, batch, rows):
        batch.columns["twice"] = torch.tensor([row["twice"] for row in rows])
        return batch

    def losses(self, batch, step):
        assert torch.equal(batch.columns["twice"], 2 * batch.example_ids)
        logits = self.model(batch.input_ids, **batch.texts()).logits
        yield step.cross_entropy(logits * self.scale, batch.labels)
        yield self.options.strength * (self.scale - 2) ** 2

    def advice(self, metrics):
        return f"the scale's loss was {metrics['train_loss_scale']:.3f}"
"""


def install(folder, package, code, value):
    """A package in `folder`, as pip would install it, with one method."""
    module = value.partition(":")[0]
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[masktuning.methods]\n{package.rpartition('-')[2]} = {value}\n"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny model, two files of texts and a package with the method `scaled`."""
    folder = tmp_path_factory.mktemp("scaled")
    save_tiny(folder / "model", "bert")
    for name in ("train", "dev"):
        rows = [f"w{7 * i % 80} w{i % 11},{7 * i % 80 % 2}" for i in range(24)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    install(folder, "masktuning-scaled", SCALED, "scaled_method:Scaled")
    return folder


def train(folder, *words, expect=0, processes=1):
    """`python -m masktuning.train` where the packages in `folder` are installed."""
    usual = {"model_name_or_path": "model", "train_file": "train.csv", "validation_file": "dev.csv"}
    command = [sys.executable, "-m", "masktuning.train", "--use_cpu", "true", *words]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launcher, "--nproc_per_node", str(processes), *command[1:]]
    for name, value in usual.items():
        command += [f"--{name}", value]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "HF_HOME": str(folder / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expect, done.stderr[-3000:]
    return done


def test_a_method_of_another_package_works_like_ours(files):
    """Its flags, its stage, its column, its own parameter and its place in the run folder."""
    words = ("--method", "scaled", "--max_steps", "4", "--logging_steps", "1", "--save_steps", "2")
    done = train(files, *words, "--strength", "0.25", "--output_dir", "out")
    out = files / "out"
    assert "stage of scaled: finetuning, into out/stages/teacher" in done.stdout
    assert "the scale's loss was" in done.stdout
    assert "strength: 0.25" in (out / "config.yaml").read_text()
    card = (out / "README.md").read_text()
    assert "Method `scaled`: strength 0.25." in card and "Nobody, 2026" in card
    scale = load_file(out / "method" / "model.safetensors")["scale"]
    assert float(scale) > 1.0  # its loss pulls it to 2
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    first = next(log for log in logs if "loss_scale" in log)
    assert first["loss_scale"] == pytest.approx(0.25, rel=1e-5)  # 0.25 * (1 - 2)^2
    assert first["loss"] == pytest.approx(first["loss_cls"] + 0.25, rel=1e-3)
    assert first["grad_norm_scale"] == pytest.approx(0.5, rel=1e-5)  # |2 * 0.25 * (1 - 2)|
    assert first["grad_norm_cls"] > 0


def test_stages_and_own_parameters_survive_a_stop(files):
    """A run that goes on from a checkpoint repeats no stage, and ends with the same bits."""
    words = ("--method", "scaled", "--max_steps", "4", "--save_steps", "2")
    words += ("--keep_optimizer_states",)
    train(files, *words, "--output_dir", "whole")
    whole = files / "whole"
    teacher = (whole / "stages" / "teacher" / "all_results.json").stat().st_mtime_ns
    checkpoint = str(whole / "checkpoint-2")
    kept = {n: (whole / n).read_bytes() for n in ("model.safetensors", "method/model.safetensors")}
    done = train(files, *words, "--output_dir", "whole", "--resume_from_checkpoint", checkpoint)
    assert "stage of" not in done.stdout
    assert (whole / "stages" / "teacher" / "all_results.json").stat().st_mtime_ns == teacher
    for name, content in kept.items():
        assert (whole / name).read_bytes() == content, name
    done = train(files, *words, "--output_dir", "whole", "--overwrite")
    assert "stage of scaled" in done.stdout  # begun anew: the stage too


def test_the_method_of_the_page_on_extending(files):
    """docs/extending.md: its file, its line of pyproject.toml and its command, as they stand."""
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,), (command,) = (
        re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) for language in ("python", "bash")
    )
    (line,) = re.findall(r"```toml\n.*?\n(.*?)\n```", page, re.DOTALL)
    name, _, value = line.replace('"', "").replace(" ", "").partition("=")
    assert len(code.strip().splitlines()) <= 40
    install(files, f"example-{name}", code, value)
    (files / "roberta-base").symlink_to(files / "model")
    words = command.split()[3:]
    train(files, *words, "--num_train_epochs", "1", "--logging_steps", "1")
    out = files / "dropout"
    assert "dropout_rate: 0.2" in (out / "config.yaml").read_text()
    logs = json.loads((out / "trainer_state.json").read_text())["log_history"]
    dropped = [log["dropped_tokens"] for log in logs if "dropped_tokens" in log]
    assert 0 < sum(dropped) / len(dropped) < 2  # of 2 words per text
    texts = [json.loads(s) for s in (out / "perturbations.jsonl").read_text().splitlines()]
    changes = [change for text in texts for change in text["changes"]]
    assert changes and {new for _, _, new in changes} == {"<unk>"}


def test_its_help_and_its_checks(files):
    done = train(files, "--method", "scaled", "--help")
    assert "--strength" in done.stdout and "How much the scale counts." in done.stdout
    done = train(files, "--method", "scaled", "--strength", "-1", expect=2)
    assert done.stderr == "error: strength is -1.0: give 0 or more\n"


@pytest.mark.parametrize(
    ("name", "code", "value", "message"),
    [
        ("importing", "import no_such_package\n", "importing_one:Method", "No module named"),
        ("nameless", "x = 1\n", "nameless_one:Method", "no attribute 'Method'"),
        ("syntax", "class Method(:\n", "syntax_one:Method", "SyntaxError"),
        ("alien", "class Method: pass\n", "alien_one:Method", "lacks the member 'Options'"),
        (
            "lossless",
            "from masktuning.methods.base import Method as M\nclass Method(M): pass\n",
            "lossless_one:Method",
            "lacks the member 'losses'",
        ),
        (
            "wanting",
            "from masktuning.methods.base import Method as M\nclass Method(M):\n"
            "    requires = frozenset({'telepathy'})\n    def losses(self, batch, step): pass\n",
            "wanting_one:Method",
            "'requires' with 'telepathy'; a model can give attentions, embeddings, mlm_head, "
            "pooled",
        ),
        ("odd", "raise KeyError('something')\n", "odd_one:Method", "KeyError: 'something'"),
        (
            "needy",
            "from dataclasses import dataclass\n"
            "from masktuning.methods.base import Method as M\n"
            "@dataclass\nclass O:\n    size: int\n"
            "class Method(M):\n    Options = O\n    def losses(self, batch, step): pass\n",
            "needy_one:Method",
            "'Options' whose option 'size' has no default",
        ),
        (
            "plain",
            "from masktuning.methods.base import Method as M\nclass Method(M):\n"
            "    Options = dict\n    def losses(self, batch, step): pass\n",
            "plain_one:Method",
            "'Options' that is not a dataclass",
        ),
    ],
)
def test_a_broken_package_is_one_line_and_the_others_work(
    tmp_path, monkeypatch, name, code, value, message
):
    install(tmp_path, f"somebodys-{name}", code, value)
    monkeypatch.syspath_prepend(tmp_path)
    assert name in names()
    with pytest.raises(UsageError, match=message) as caught:
        method_class(name)
    told = str(caught.value)
    assert f"somebodys-{name}" in told and value in told and "\n" not in told
    for ours in METHODS:
        assert issubclass(method_class(ours), Method)


def test_dry_run_estimates_stages_and_keeps_nothing(files):
    done = train(files, "--method", "scaled", "--dry_run", "--output_dir", "dry")
    assert "stage teacher:" in done.stdout and "scaled:" in done.stdout
    assert "estimated total: " in done.stdout and not (files / "dry").exists()


def test_two_processes_with_one_backward_pass(files):
    """Where DDP allows one backward pass only, the losses are summed and logged all the same."""
    words = ("--max_steps", "2", "--logging_steps", "1", "--output_dir", "joint")
    words += ("--ddp_find_unused_parameters", "false", "--ddp_backend", "gloo")
    train(files, "--method", "scaled", *words, processes=2)
    logs = json.loads((files / "joint" / "trainer_state.json").read_text())["log_history"]
    first = next(log for log in logs if "loss_scale" in log)
    assert first["loss_scale"] == pytest.approx(0.5, rel=1e-5) and "grad_norm_scale" not in first
    assert first["loss"] == pytest.approx(first["loss_cls"] + 0.5, rel=1e-3)
    out = ("--output_dir", "alpha_0", "--alpha", "0", *words[:4], *words[6:])
    train(files, "--method", "mask_tuning", *out, processes=2)


def test_a_broken_package_ends_the_command_with_2(files, tmp_path):
    install(tmp_path, "somebodys-broken", "import no_such_package\n", "broken_one:Method")
    for path in tmp_path.iterdir():
        path.rename(files / path.name)
    done = train(files, "--method", "broken", "--output_dir", "broken", expect=2)
    assert done.stderr.count("\n") == 1 and "somebodys-broken" in done.stderr
    assert "broken_one:Method cannot be imported" in done.stderr
    assert not (files / "broken").exists()
    train(files, "--method", "finetuning", "--max_steps", "1", "--output_dir", "plain")


@pytest.mark.parametrize("option", ["seed", "config", "device", "max_train_samples"])
def test_an_option_with_a_name_of_trainer_s_is_refused(tmp_path, monkeypatch, option):
    from masktuning.training.arguments import arguments_for

    code = (
        "from dataclasses import dataclass\nfrom masktuning.methods.base import Method as M\n"
        f"@dataclass\nclass O:\n    {option}: int = 3\n"
        "class Method(M):\n    Options = O\n    def losses(self, batch, step): pass\n"
    )
    name = f"reusing_{option}"
    install(tmp_path, f"somebodys-{name}", code, f"{name}_one:Method")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=f"has an option '{option}', a name that is already one"):
        arguments_for(name)


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="unknown method 'mask_tunning'; did you mean 'mask_tun"):
        method_class("mask_tunning")


@pytest.mark.parametrize("name", METHODS)
def test_our_methods_have_the_interface(name):
    found = method_class(name)
    assert found.requires <= FEATURES.keys() and len(found.terms) >= 1
    assert Path(sys.modules[found.__module__].__file__).stem == name  # one file per method
    assert options_by_method()[name] == set(found.Options.__dataclass_fields__)


@pytest.mark.parametrize("backward_all", [backward_each, backward_joint])
@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_losses_than_terms_is_told(count, backward_all):
    import torch
    from families import tiny_model, tiny_tokenizer

    from masktuning.methods.base import NoOptions

    class Wrong(Method):
        terms = ("one", "two")

    method = Wrong(tiny_model("bert"), tiny_tokenizer(), NoOptions())
    losses = (torch.ones((), requires_grad=True) * i for i in range(count))
    told = r"Wrong yields (fewer|more) losses than its terms one, two"
    with pytest.raises(ValueError, match=told):
        backward_all(method, method, losses, lambda loss, term: loss.backward())
