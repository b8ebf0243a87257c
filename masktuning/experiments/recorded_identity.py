"""The identity of a study in its storage: one record of the study, and one of each variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from masktuning.config.errors import UsageError
from masktuning.experiments.storage import with_patience

if TYPE_CHECKING:
    from optuna import Study

_STUDY = "identity"
_VARIANT = f"{_STUDY}:"


def record_identity(url: str, study: Study, identity: Mapping[str, Any]) -> None:
    """Records what is not known yet; see `SharedStudy.identify`.

    Each variant has a record of its own, since another machine may record other variants at the
    same time.

    Raises:
        UsageError: if what is recorded differs from `identity`.
    """
    known = _recorded(url, study)
    if known and (changed := list(_changes(known, identity))):
        raise UsageError(
            f"the study {study.study_name!r} was begun otherwise: {'; '.join(changed)}. "
            "Give another --study or another --output_dir, or go back to what it was begun with"
        )
    new: dict[str, Any] = {} if known else {_STUDY: {**identity, "variants": {}}}
    for name, options in identity["variants"].items():
        if name not in known.get("variants", {}):
            new[f"{_VARIANT}{name}"] = options
    for name, value in new.items():
        with_patience(url, partial(study.set_user_attr, name, value))


def _recorded(url: str, study: Study) -> dict[str, Any]:
    """The identity with all recorded variants; empty in a new study."""
    records = with_patience(url, lambda: study.user_attrs)
    if _STUDY not in records:
        return {}
    whole = records[_STUDY]
    variants = {
        name.removeprefix(_VARIANT): options
        for name, options in records.items()
        if name.startswith(_VARIANT)
    }
    # Studies of earlier versions hold the variants in the record of the study.
    return {**whole, "variants": {**whole["variants"], **variants}}


def _changes(known: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> Iterator[str]:
    """What differs between two identities, in words."""
    for name in sorted(known.keys() | now.keys()):
        before, after = known.get(name), now.get(name)
        if where == "variants " and (before is None or after is None):
            continue  # the comparison has more variants, or fewer
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{where}{name} ")
        elif before != after:
            yield f"{where}{name} {before} -> {after}"
