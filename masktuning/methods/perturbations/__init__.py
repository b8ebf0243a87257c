"""The perturbation strategies of Mask-tuning: one file each, listed here by the name that
`--perturbation` takes."""

from __future__ import annotations

from importlib.metadata import EntryPoint

from masktuning.methods.perturbations.base import Strategy

MLM = "mlm"  # the paper's
_HERE = "masktuning.methods.perturbations"
_CLASSES = {
    MLM: f"{_HERE}.mlm:MaskedLMPredictions",
    "random": f"{_HERE}.random_tokens:RandomTokens",
    "ssmba": f"{_HERE}.ssmba:SSMBA",
    "bae": f"{_HERE}.bae:BAE",
    "clare": f"{_HERE}.clare:CLARE",
}


def strategy_class(name: str) -> type[Strategy]:
    """The class of a strategy, which `StrategyOptions.check` has found to exist."""
    return EntryPoint(name, _CLASSES[name], _HERE).load()
