"""The page docs/methods.md, written from the methods' own docstrings and options."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from masktuning.methods import METHODS, method_class
from masktuning.methods.base import Method
from masktuning.methods.requirements import FEATURES

_INTRODUCTION = """\
# Methods

`--method NAME` selects how a model is trained. docs/training.md describes what all methods have in
common: the trainer, batches, precision, the log and the files of a run.
`python -m masktuning.train --method NAME --help` shows the options of a method, and
`python -m masktuning.methods` lists the methods.

In the equations, x is the text of an example, y its label, f the classifier's logits, and CE the
cross-entropy. Every mean is taken over the whole optimizer step: over all micro-batches of gradient
accumulation and over all processes. Methods of other packages are used in the same way; see
docs/extending.md.
"""
_FOOTER = """
This page is written by `python -m masktuning.methods page` from the docstrings of the methods.
"""


def page(costs: Path | None = None) -> str:
    """The whole page as Markdown.

    Args:
        costs: the result of `benchmarks/bench_methods.py`, the measured times and memory.
    """
    measured = {} if costs is None else json.loads(costs.read_text(encoding="utf-8"))
    parts = [
        _linked(_unwrapped(_INTRODUCTION)).rstrip() + "\n",
        _table(measured),
        *(_section(name) for name in METHODS),
    ]
    return "\n".join(parts) + _FOOTER


def listing() -> str:
    """A method per paragraph, for the terminal: its name, its loss, and when to choose it."""
    blocks = []
    for name in METHODS:
        method = method_class(name)
        loss = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0].replace("\n", " ")
        blocks.append(f"{name}\n    {loss}\n    {method.when}")
    return "\n\n".join(blocks)


def needs(name: str) -> str:
    """What a method needs from the model, and which trainings come before it."""
    method = method_class(name)
    wanted = [words for feature, words in FEATURES.items() if feature in method.requires]
    wanted += [f"an earlier training (`{s.name}`)" for s in method.stages(method.Options())]
    return ", ".join(([method.needs] if method.needs else []) + wanted) or "nothing"


def _table(measured: Mapping[str, Any]) -> str:
    """One row per method: what it needs, what it costs, when to choose it."""
    by_name: Mapping[str, Any] = measured.get("methods", {})
    lines = [
        "| method | needs | step time | memory | when to choose it |",
        "|---|---|---|---|---|",
    ]
    for name in METHODS:
        cost = by_name.get(name, {})
        time, memory = (_times(cost.get(key)) for key in ("step_time", "peak_memory"))
        link = f"[`{name}`](#{name})"
        lines.append(f"| {link} | {needs(name)} | {time} | {memory} | {method_class(name).when} |")
    if measured:
        lines += [
            "",
            "Step time and peak memory are relative to `finetuning`, from one run: "
            f"{measured['model']}, batches of {measured['batch']} texts, "
            f"{measured['precision']}, {measured['processor']}, {measured['threads']} thread(s) "
            "(`benchmarks/results/methods_cpu.json`). Earlier trainings and the preparation of "
            "the training set are not in it. A step of `augmentation`, of `sequential` or of a "
            "method with a frozen bias model does the same work as one of `finetuning`, so how far "
            "these differ from 1 shows how much the times of this machine vary.",
        ]
    return "\n".join(lines) + "\n"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _section(name: str) -> str:
    """The section of one method: its docstring, its options, its paper."""
    method = method_class(name)
    parts = [f"## `{name}`", _markdown(inspect.cleandoc(method.__doc__ or "")), *_options(method)]
    if method.paper:
        parts.append(f"Paper: {_linked(method.paper)}.")
    return "\n\n".join(parts) + "\n"


def _markdown(docstring: str) -> str:
    """A docstring as Markdown: each literal block (after `::`) becomes a block of code."""
    pieces = re.split(r"::\n\n((?:    .*\n|\n)*(?:    .*))", docstring + "\n")
    texts = [piece.strip("\n") for piece in pieces]
    for i in range(1, len(texts), 2):
        block = inspect.cleandoc("\n" + texts[i])
        texts[i - 1] += ":"
        # Not marked as Python: tests run Python blocks, and these are fragments.
        texts[i] = f"```text\n{block}\n```"
    paragraphs = [_unwrapped(text) if i % 2 == 0 else text for i, text in enumerate(texts)]
    return _linked("\n\n".join(text for text in paragraphs if text))


def _unwrapped(text: str) -> str:
    """Paragraphs on one line each; the lines of indented blocks and lists stay apart."""
    done = []
    for paragraph in text.split("\n\n"):
        plain = not paragraph.startswith((" ", "- ", "* ", "|"))
        done.append(" ".join(paragraph.split("\n")) if plain else paragraph)
    return "\n\n".join(done)


def _linked(text: str) -> str:
    """The text with links to arXiv and to the pages that it names."""
    text = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"\bdocs/(\w+\.md)", r"[\1](\1)", text)


def _options(method: type[Method]) -> list[str]:
    """The table of a method's options, if it has any."""
    rows = []
    for one in fields(method.Options):
        factory = one.default_factory
        default = one.default if factory is MISSING else factory()
        shown = str(default).lower() if isinstance(default, bool | None) else default
        meaning = one.metadata.get("help", "").replace("|", "\\|").replace("\n", " ")
        if choices := one.metadata.get("choices"):
            meaning += f" Choices: {', '.join(f'`{choice}`' for choice in choices)}."
        rows.append(f"| `--{one.name}` | `{shown}` | {meaning} |")
    if not rows:
        return []
    return ["\n".join(["| option | default | meaning |", "|---|---|---|", *rows])]
