"""Trains a tiny model and writes what happened; run by test_trainer.py, alone or under torchrun.

python tests/training/train_tiny.py '{"out": "result.json", "output_dir": "run", ...}'
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "modeling"))

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from families import examples, tiny_model, tiny_tokenizer
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from masktuning import MaskTuningArguments, MaskTuningTrainer
from masktuning.evaluation.predict import predict
from masktuning.methods import perturbation
from masktuning.modeling.encoder_layers import encoder_layers
from masktuning.training.perturbation_log import PerturbationLog


class KillAt(TrainerCallback):
    """Ends the process as a power cut would, right after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def record_masks(seen: dict[str, set[int]]) -> None:
    """Keeps, for each example and epoch, which of its tokens the training masked."""
    sample = perturbation.sample_masks

    def recording(input_ids: Any, maskable: Any, example_ids: Any, *rest: Any) -> Any:
        masked = sample(input_ids, maskable, example_ids, *rest)
        epoch = int(rest[1][1])
        for position in masked.positions.tolist():
            b, t = divmod(position, input_ids.shape[1])
            seen.setdefault(f"{int(example_ids[b])}/{epoch}", set()).add(t)
        return masked

    perturbation.sample_masks = recording


def train(
    out: str | None = None,
    family: str = "bert",
    count: int = 64,
    dropout: bool = False,
    kill_at: int = 0,
    resume: str | None = None,
    pair: bool = True,
    dev: int = 0,
    sharded: bool = False,
    stream: bool = False,
    perturbations: str | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Logs, masks, final weights (as one vector) and times of a run.

    If it evaluated `dev` examples, also the logits that it kept of them and those of `predict`.
    Accelerate shards no model on CPUs, though PyTorch can; `sharded` makes it believe in GPUs.
    With `stream`, the training set is one. `perturbations` is a folder for PerturbationLog.
    """
    seen: dict[str, set[int]] = {}
    record_masks(seen)
    model = tiny_model(family)
    if dropout:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
    settings = {
        "mask_rate": 0.2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "save_strategy": "no",
        **arguments,
    }
    args = MaskTuningArguments(**settings)
    rows = Dataset.from_list(examples(count, 3, pair, classes=2))
    if sharded:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    trainer = MaskTuningTrainer(
        model=model,
        args=args,
        train_dataset=rows.to_iterable_dataset() if stream else rows,
        eval_dataset=Dataset.from_list(examples(dev, 4, pair, classes=2)) if dev else None,
        processing_class=tiny_tokenizer(),
        callbacks=[KillAt(kill_at)] if kill_at else None,
    )
    if perturbations:
        trainer.add_callback(PerturbationLog(trainer, perturbations, ["bad", "good"]))
    trainer.train(resume_from_checkpoint=resume)
    parameters = [p.detach() for p in trainer.model.parameters()]
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]
    layers = encoder_layers(trainer.method.model.encoder)
    assert all(isinstance(layer, FSDPModule) == sharded for layer in layers)
    weights = torch.cat([p.flatten() for p in whole])
    result = {
        "logs": [log for log in trainer.state.log_history if "loss" in log],
        "masks": {key: sorted(tokens) for key, tokens in seen.items()},
        "weights": weights.tolist(),
        "seconds": trainer.time_log.seconds(),
    }
    if dev:
        result["kept"] = trainer.dev_logits().tolist()
        result["predicted"] = predict(trainer, trainer.eval_dataset).tolist()
    if out:
        rank = trainer.args.process_index
        Path(f"{out}.{rank}" if rank else out).write_text(json.dumps(result))
    return result


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
