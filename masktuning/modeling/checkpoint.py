"""Checkpoint folders: an ordinary classifier, with the other trained parts in folders of their own.

The classifier lies at the root, where transformers finds it. Each other part (`mlm_head/`, and
`method/` for a method with parameters of its own) is one safetensors file in a folder; training
needs them to go on, and the classifier does without them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

HEAD = "mlm_head"
METHOD = "method"
PARTS = (HEAD, METHOD)


def part_file(folder: str | Path, part: str) -> Path:
    """Where the weights of a part lie."""
    return Path(folder) / part / "model.safetensors"


def save_checkpoint(
    folder: str | Path,
    classifier: PreTrainedModel,
    state: dict[str, Tensor],
    parts: dict[str, dict[str, Tensor]],
) -> None:
    """Writes the classifier with the weights `state`, and each of `parts`.

    The final checkpoint of a run and the weights in its checkpoint-N folders are written here; what
    else Trainer needs to resume it writes itself.

    Every file is written elsewhere in the folder first and then renamed, so nobody ever reads half
    of one. Parts of an earlier checkpoint that are not written now are removed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
        classifier.save_pretrained(partial, state_dict=state)
        for part in PARTS:
            if part in parts:
                part_file(partial, part).parent.mkdir()
                contiguous = {name: tensor.contiguous() for name, tensor in parts[part].items()}
                save_file(contiguous, part_file(partial, part), {"format": "pt"})
                (folder / part).mkdir(exist_ok=True)
            else:
                shutil.rmtree(folder / part, ignore_errors=True)
        for file in sorted(path for path in Path(partial).rglob("*") if path.is_file()):
            os.replace(file, folder / file.relative_to(partial))


def load_part(folder: str | Path, part: str, module: nn.Module, names: list[str]) -> None:
    """Loads the weights `names` of a part into `module`, in place.

    Raises:
        ValueError: if the file holds other names.
    """
    path = part_file(folder, part)
    state = load_file(path)
    if sorted(state) != sorted(names):
        raise ValueError(f"{path} holds {sorted(state)}, not {sorted(names)}")
    module.load_state_dict(state, strict=False)


def with_shared_tensors(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state of `module`, gathered from several processes, with one tensor for each parameter.

    Gathering copies a parameter that has several names, and each copy would be written.
    """
    first: dict[nn.Parameter, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {**state, **{name: state[first.setdefault(p, name)] for name, p in named}}


def own_names(head: nn.Module, classifier: nn.Module) -> list[str]:
    """The names of the tensors of `head` that it does not share with the classifier, each once."""
    seen = {tensor.data_ptr() for tensor in classifier.state_dict().values()}
    names = []
    for name, tensor in head.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            names.append(name)
    return sorted(names)


def starting_with(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
