"""The mask policies of Mask-tuning: which tokens are masked. One file per kind of policy, listed
here by the name that `--mask_policy` takes."""

from __future__ import annotations

from importlib.metadata import EntryPoint

from masktuning.methods.masks.base import MaskPolicy

RANDOM = "random"
_HERE = "masktuning.methods.masks"
_CLASSES = {
    RANDOM: f"{_HERE}.base:MaskPolicy",
    "spare": f"{_HERE}.association:LabelAssociation",
    "aim": f"{_HERE}.association:LabelAssociation",
    "bernoulli": f"{_HERE}.thresholds:Bernoulli",
    "l3": f"{_HERE}.thresholds:ThresholdColumn",
    "whole_word": f"{_HERE}.whole_word:WholeWords",
    "keywords": f"{_HERE}.keywords:Keywords",
    "keywords_attention": f"{_HERE}.keywords:Keywords",
}
POLICIES = tuple(_CLASSES)
FAIR = (RANDOM, "bernoulli", "whole_word")
"""Those whose masked tokens are a fair sample of the texts."""
BY_PROBABILITY = ("bernoulli", "l3")
"""Those that mask each token with a probability of its own, so that no number is certain."""


def policy_class(name: str) -> type[MaskPolicy]:
    """The class of a policy, which `MaskTuningOptions.check` has found to exist."""
    found: type[MaskPolicy] = EntryPoint(name, _CLASSES[name], _HERE).load()
    return found
