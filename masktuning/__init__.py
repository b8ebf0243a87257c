"""Fine-tune text classifiers that hold up out of distribution (Mask-tuning, arXiv 2307.10457)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masktuning.config.version import __version__ as __version__

if TYPE_CHECKING:
    from masktuning.data.collator import MaskTuningCollator
    from masktuning.modeling.shared_encoder import MaskTuningModel
    from masktuning.ops import dual_cross_entropy, masked_lm_head, sample_masks, substitute_tokens
    from masktuning.training.arguments import MaskTuningArguments, arguments_for
    from masktuning.training.trainer import MaskTuningTrainer

_HOMES = {
    "MaskTuningArguments": "masktuning.training.arguments",
    "MaskTuningCollator": "masktuning.data.collator",
    "MaskTuningModel": "masktuning.modeling.shared_encoder",
    "MaskTuningTrainer": "masktuning.training.trainer",
    "arguments_for": "masktuning.training.arguments",
    "dual_cross_entropy": "masktuning.ops",
    "masked_lm_head": "masktuning.ops",
    "sample_masks": "masktuning.ops",
    "substitute_tokens": "masktuning.ops",
}
__all__ = [
    "MaskTuningArguments",
    "MaskTuningCollator",
    "MaskTuningModel",
    "MaskTuningTrainer",
    "arguments_for",
    "dual_cross_entropy",
    "masked_lm_head",
    "sample_masks",
    "substitute_tokens",
]

_root = Path(__file__).resolve().parent.parent
if (_root / "csrc").is_dir():  # in a checkout, kernels/ and csrc/ lie next to this package
    __path__.append(str(_root))


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and transformers take seconds, `--help` must not.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
