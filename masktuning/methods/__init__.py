"""Training methods: one file per paper, listed here by the name that `--method` takes.

Other packages add methods through the entry point group `masktuning.methods`; docs/extending.md
shows how. Nothing is imported before a method is asked for, so `--help` stays quick.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError, check_names, one_line

if TYPE_CHECKING:
    from masktuning.methods.base import Method

GROUP = "masktuning.methods"
METHODS = {
    "mask_tuning": "masktuning.methods.mask_tuning:MaskTuning",
    "finetuning": "masktuning.methods.finetuning:Finetuning",
    "augmentation": "masktuning.methods.augmentation:Augmentation",
    "no_integrated_loss": "masktuning.methods.no_integrated_loss:NoIntegratedLoss",
    "masked_lm": "masktuning.methods.masked_lm:MaskedLM",
    "sequential": "masktuning.methods.sequential:Sequential",
    "cutoff": "masktuning.methods.cutoff:Cutoff",
    "hiddencut": "masktuning.methods.hiddencut:HiddenCut",
    "random_token_masking": "masktuning.methods.random_token_masking:RandomTokenMasking",
    "l3masking": "masktuning.methods.l3masking:L3Masking",
    "bias_product": "masktuning.methods.bias_product:BiasProduct",
    "reweight": "masktuning.methods.reweight:Reweight",
    "learned_mixin": "masktuning.methods.learned_mixin:LearnedMixin",
    "poe": "masktuning.methods.poe:Poe",
    "debiased_focal": "masktuning.methods.debiased_focal:DebiasedFocal",
    "rubi": "masktuning.methods.rubi:Rubi",
    "confidence_regularization": (
        "masktuning.methods.confidence_regularization:ConfidenceRegularization"
    ),
    "dependency_parsing": "masktuning.methods.dependency_parsing:DependencyParsing",
    "intermediate_parsing": "masktuning.methods.intermediate_parsing:IntermediateParsing",
}


def names() -> list[str]:
    """The methods of this package, then those that other installed packages add."""
    return [*METHODS, *(name for name in _others() if name not in METHODS)]


@cache
def method_class(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        UsageError: if there is no method of that name, or the package that adds it cannot be
            imported or lacks a member of the interface; the message names the package and member.
    """
    if name in METHODS:  # first, since `names` reads the metadata of every installed package
        return EntryPoint(name, METHODS[name], GROUP).load()
    check_names([name], set(names()), "method")
    entry = _others()[name]
    package = entry.dist.name if entry.dist else entry.module.partition(".")[0]
    where = f"the method {name!r} of the package {package} cannot be used"
    try:
        found = entry.load()
    except Exception as error:  # importing the code of another package may raise anything
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"{where}: {entry.value} cannot be imported ({reason})") from None
    if problem := _problem(found):
        raise UsageError(f"{where}: {entry.value} {problem}")
    if not hasattr(found.Options, "_argument_group_name"):
        found.Options._argument_group_name = name  # the heading of its flags in --help
    return found


def options_by_method() -> dict[str, set[str]]:
    """The names of the options of every method of this package."""
    return {name: {f.name for f in fields(method_class(name).Options)} for name in METHODS}


def _others() -> dict[str, EntryPoint]:
    """The entry points of other packages by their names."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _problem(found: Any) -> str:
    """Which member of the interface is missing or invalid in a class; "" if it can be used."""
    from masktuning.methods.base import Method
    from masktuning.methods.requirements import FEATURES

    for member in ("Options", "requires", "terms", "losses"):
        if getattr(found, member, None) is None or (
            member == "losses" and found.losses is Method.losses
        ):
            return f"lacks the member {member!r}"
    if not (isinstance(found, type) and issubclass(found, Method)):
        return "is not a subclass of masktuning.methods.base.Method"
    if not (isinstance(found.Options, type) and is_dataclass(found.Options)):
        return "has a member 'Options' that is not a dataclass"
    required = [f.name for f in fields(found.Options) if f.default is f.default_factory]
    if required:  # both are MISSING
        return f"has a member 'Options' whose option {required[0]!r} has no default"
    if unknown := set(found.requires) - FEATURES.keys():
        known = ", ".join(sorted(FEATURES))
        return f"has a member 'requires' with {sorted(unknown)[0]!r}; a model can give {known}"
    if not found.terms or isinstance(found.terms, str):
        return "has a member 'terms' that is not a tuple of the names of its losses"
    return ""
