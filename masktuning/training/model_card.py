"""The model card: README.md of a run folder."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from string import Template
from typing import Any

from masktuning.config.version import __version__
from masktuning.evaluation.metrics import SetResult
from masktuning.evaluation.tables import markdown_table
from masktuning.methods import method_class
from masktuning.training.arguments import method_options
from masktuning.training.job import TrainingJob

_TEMPLATE = Path(__file__).parent / "model_card.md"


def card_of(job: TrainingJob, state: Any, examples: int, results: list[SetResult]) -> str:
    """The model card of a finished run; `state` is Trainer's."""
    args = job.training
    method = method_class(args.method)
    options = asdict(method_options(args))
    listed = ", ".join(f"{name} {value}" for name, value in options.items())
    size = state.train_batch_size or args.train_batch_size  # --auto_find_batch_size found it
    facts = {
        **{f.name: getattr(args, f.name) for f in fields(args)},
        "num_train_epochs": round(state.epoch or 0.0, 2),  # --max_steps may end it early
        "task": job.task.name,
        "labels": "\n".join(f"- {i}: {name}" for i, name in enumerate(job.task.labels)),
        "base_model": job.model.model_name_or_path or "the embedded checkpoint",
        "version": __version__,
        "train_samples": examples,
        "steps": state.global_step,
        "selection": _selection(args),
        "batch_size": size * args.gradient_accumulation_steps * args.world_size,
        "results": markdown_table(results),
        "options": f": {listed}" if listed else "",
        "head": "`mlm_head/` holds the masked-LM head, for resuming; the classifier does without.\n"
        if "mlm_head" in method.requires
        else "",
        "paper": f"\nMethod: {method.paper}.\n" if method.paper else "",
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(facts)


def _selection(args: Any) -> str:
    """Which model of the run was kept."""
    if not args.load_best_model_at_end:
        return "the last step's model"
    metric = args.metric_for_best_model
    of_set = metric.startswith("eval_")  # a name that says which set it was measured on
    return f"the best {metric}" if of_set else f"the best {metric} on dev"
