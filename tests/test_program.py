"""`masktuning` and `python -m masktuning` list the commands and run each as its module does."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from masktuning import __main__ as program
from masktuning.config.errors import UsageError
from masktuning.config.version import __version__


def run(*words):
    done = subprocess.run(
        [sys.executable, "-m", "masktuning", *words], capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_without_a_command_they_are_listed(words):
    code, printed, errors = run(*words)
    assert (code, errors) == (0, "") and __version__ in printed
    for name in program.COMMANDS:
        assert f"masktuning {name} " in printed


@pytest.mark.parametrize("name", program.COMMANDS)
def test_a_command_is_its_module(name):
    module = subprocess.run(
        [sys.executable, "-m", f"masktuning.{name}", "--help"], capture_output=True, text=True
    )
    assert module.returncode == 0 and module.stdout
    assert run(name, "--help") == (0, module.stdout, module.stderr)


def test_usage_errors_are_one_line_and_exit_code_2():
    code, _, errors = run("trian", "--task", "demo")
    assert code == 2 and errors == "error: unknown command 'trian'; did you mean 'train'?\n"
    code, _, errors = run("--task", "demo")
    assert code == 2 and "masktuning train --task" in errors
    code, _, errors = run("train", "--aplha", "0.1")
    assert code == 2 and "did you mean" in errors and errors.count("\n") == 1


def test_the_program_is_installed():
    (script,) = (one for one in entry_points(group="console_scripts") if one.name == "masktuning")
    assert script.load() is program.console_script


def test_an_unknown_command_raises():
    with pytest.raises(UsageError, match=r"did you mean 'evaluate'"):
        program.main(["evalute"])
