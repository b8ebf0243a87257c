"""Which sets of a task are evaluated, and at which lengths of text."""

from __future__ import annotations

import logging

from masktuning.config.errors import UsageError, check_names
from masktuning.tasks import PROTOCOLS, SetSpec, Task

logger = logging.getLogger(__name__)


def wanted_sets(task: Task, names: list[str], protocols: list[str]) -> list[SetSpec]:
    """The sets of the given names and protocols, the parts of unions, and the user's own files.

    Without names and protocols these are all sets but the training set. A name that is not a set's
    stands for all sets whose names begin with it: anli_r1 for anli_r1_dev and anli_r1_test.

    Raises:
        UsageError: on an unknown name or protocol, or if no set belongs to the protocols.
    """
    known = [spec.name for spec in task.sets]
    beginning = {name: [one for one in known if one.startswith(f"{name}_")] for name in names}
    check_names([n for n in names if n in known or not beginning[n]], set(known), "set")
    check_names(protocols, set(PROTOCOLS), "protocol")
    if not names and not protocols:
        return [spec for spec in task.sets if spec.role != "train"]
    wanted = {one for name in names for one in ([name] if name in known else beginning[name])}
    wanted |= {spec.name for spec in task.sets if set(protocols) & set(spec.protocols)}
    if not wanted:
        raise UsageError(f"no set of {task.name} belongs to {' or '.join(protocols)}")
    parts = {part for spec in task.sets if spec.name in wanted for part in spec.union_of}
    return [spec for spec in task.sets if spec.name in wanted | parts or spec.own_file]


def wanted_lengths(task: Task, usual: int, given: int | None, longest: int) -> list[int]:
    """The lengths, in tokens, to evaluate at: all sets at the first, some at the others.

    The others are the sets' own additional lengths, which apply to the sets that list them; those
    above the model's `longest` are skipped with a warning. A length `given` by the user is the
    only one.
    """
    if given is not None:
        return [given]
    additional = sorted({n for spec in task.sets for n in spec.lengths if n > usual})
    for length in (n for n in additional if n > longest):
        logger.warning("not measured at %d tokens: the model takes %d", length, longest)
    return [usual, *(n for n in additional if n <= longest)]
