"""Export a pretraining run's model as a small checkpoint: float16 weights, tokenizer, model card.

    python -m masktuning.demo.export --run_dir out --output_dir checkpoint

--run_dir is the --output_dir of `python -m masktuning.demo.pretrain`; the run need not be complete.
The model card's scores are measured with the rounded weights that are written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import Any

from masktuning.config.errors import UsageError
from masktuning.config.files import write, write_json
from masktuning.config.parser import build_parser, parse, run_command, wants_help
from masktuning.config.version import __version__
from masktuning.demo.pretrain.__main__ import PROGRAM as _PRETRAIN
from masktuning.demo.pretrain.__main__ import PretrainingArguments

PROGRAM = "python -m masktuning.demo.export"
_CORRUPTIONS = {"mask": "[MASK]", "80-10-10": "BERT's 80/10/10"}


@dataclass
class ExportArguments:
    """What to export, and to where."""

    _argument_group_name = "export"

    run_dir: str | None = field(default=None, metadata={"help": "Folder of a pretraining run."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Folder for the checkpoint.", "aliases": ["--output"]}
    )


def main(argv: list[str]) -> None:
    parser = build_parser(PROGRAM, __doc__ or "", [ExportArguments])
    if wants_help(argv):
        parser.print_help()
        return
    (arguments,) = parse(parser, argv, {})
    for name in ("run_dir", "output_dir"):
        if not getattr(arguments, name):
            raise UsageError(f"--{name} is missing; --help describes it")
    export(Path(arguments.run_dir), Path(arguments.output_dir))
    print(f"{arguments.output_dir}: the checkpoint, its tokenizer, README.md and metrics.json")


def export(run: Path, target: Path) -> dict[str, Any]:
    """Writes the checkpoint of `run` to `target`; returns what its metrics.json holds.

    Raises:
        UsageError: if `run` holds no state of a pretraining run; if `target` is a file, or `run`.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from masktuning.demo.pretrain.state import METRICS, read_progress

    state = _state_of(run, target)
    metrics = read_progress(state)
    model = AutoModelForMaskedLM.from_pretrained(state, dtype=torch.float16)
    tokenizer = AutoTokenizer.from_pretrained(state)
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # save_pretrained writes 0600, which a wheel keeps
    tokenizer.save_pretrained(target)
    metrics |= _scores(run, model, tokenizer, metrics)
    write(target / "README.md", _card(metrics))
    write_json(target / METRICS, metrics)
    return metrics


def _state_of(run: Path, target: Path) -> Path:
    """The newest state of a run that can be exported to `target`; see `export`."""
    from masktuning.demo.pretrain.corpus import packed_file
    from masktuning.demo.pretrain.state import newest

    if target.resolve() == run.resolve():
        raise UsageError(f"{target}: is the run's own folder; give another --output_dir")
    if target.is_file():
        raise UsageError(f"{target}: is a file; give a folder")
    state = newest(run)
    if state is None or not packed_file(run, "held_out").is_file():
        raise UsageError(f"{run}: holds no state and held-out text of `{_PRETRAIN}`")
    return state


def _scores(run: Path, model: Any, tokenizer: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores on all held-out windows in float32: `exported`, and `untrained` for random weights."""
    import torch

    from masktuning.demo.pretrain.corpus import Windows, packed_file
    from masktuning.demo.pretrain.masked_lm import MaskedLM, new_model

    settings, most_frequent = metrics["settings"], metrics["data"]["most_frequent_token"]
    held_out = Windows(packed_file(run, "held_out"), settings["max_length"])
    sizes = SimpleNamespace(**settings)
    untrained = new_model(sizes, len(tokenizer), torch.device("cpu"))
    scores = {}
    for name, measured in (("exported", model.float()), ("untrained", untrained)):
        lm = MaskedLM(measured, tokenizer, mask_rate=0.15, precision="fp32")
        scores[name] = lm.evaluate(held_out, held_out.count, most_frequent)
    return scores


def _card(metrics: dict[str, Any]) -> str:
    """The model card, README.md of the checkpoint."""
    settings, data, exported = metrics["settings"], metrics["data"], metrics["exported"]
    untrained, start = metrics["untrained"], metrics["evaluations"][0]
    tokens_seen = metrics["steps"] * settings["batch_size"] * settings["max_length"]
    options = [
        f"--{f.name} {settings[f.name]}"
        for f in fields(PretrainingArguments)
        if f.name in settings and f.name != "corpus" and settings[f.name] != f.default
    ]
    command = " ".join([_PRETRAIN, "--corpus", *settings["corpus"], *options, "--output_dir DIR"])
    values = {
        **{name: f"{value:,}" for name, value in data.items() if isinstance(value, int)},
        **settings,
        **metrics["versions"],
        "version": __version__,
        "parameters": f"{metrics['parameters']:,}",
        "layers": settings["num_layers"],
        "width": settings["hidden_size"],
        "heads": settings["num_heads"],
        "length": settings["max_length"],
        "masked_tokens": f"{exported['masked_tokens']:,}",
        "accuracy": f"{100 * exported['accuracy']:.1f}",
        "perplexity": f"{exported['perplexity']:.1f}",
        "untrained_accuracy": f"{100 * untrained['accuracy']:.1f}",
        "untrained_perplexity": f"{untrained['perplexity']:,.0f}",
        "start_accuracy": f"{100 * start['accuracy']:.1f}",
        "start_perplexity": f"{start['perplexity']:,.0f}",
        "unigram_accuracy": f"{100 * exported['unigram_accuracy']:.1f}",
        "files": " and ".join(f"`{name}`" for name in settings["corpus"]),
        "megabytes": f"{data['bytes'] / 1e6:.0f}",
        "held_out_share": f"{100 * settings['held_out_share']:g}",
        "mask_rate": f"{100 * settings['mask_rate']:g}",
        "decay_share": f"{100 * settings['decay_share']:g}",
        "corruption": _CORRUPTIONS[settings["corruption"]],
        "steps": f"{metrics['steps']:,}",
        "tokens_seen": f"{tokens_seen:,}",
        "epochs": f"{tokens_seen / data['train_tokens']:.1f}",
        "hardware": metrics["hardware"],
        "minutes": f"{metrics['seconds'] / 60:.0f}",
        "starts": metrics["starts"],
        "command": command,
    }
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return Template(template).substitute(values)


if __name__ == "__main__":
    run_command(main)
