"""Results as tables of text, for the terminal and for the model card of a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from masktuning.evaluation.metrics import SetResult

_HEADER = ("set", "role", "accuracy", "95 % interval", "n")
_ROLES = {"dev": "in distribution", "ood": "out of distribution", "train": "training"}


def _cells(result: SetResult) -> tuple[str, ...]:
    return (
        result.name,
        _ROLES[result.role],
        f"{100 * result.accuracy:.2f}",
        f"{100 * result.low:.2f} to {100 * result.high:.2f}",
        str(result.n),
    )


def text_table(results: list[SetResult]) -> str:
    """A table of accuracies in per cent, one row per set."""
    return aligned([_HEADER, *map(_cells, results)])


def details_table(results: list[SetResult]) -> str:
    """A table of all other scores in per cent, one row per score; empty if there are none."""
    rows = []
    for result in results:
        for name, value in result.more.items():
            if name.endswith(("_low", "_high")):
                continue
            interval = ""
            if f"{name}_low" in result.more:
                low, high = (result.more[f"{name}_{end}"] for end in ("low", "high"))
                interval = f"{100 * low:.2f} to {100 * high:.2f}"
            rows.append((result.name, name, f"{100 * value:.2f}", interval))
    return aligned([("set", "measure", "per cent", "95 % interval"), *rows]) if rows else ""


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of cells as columns of equal width, with a line under the first row."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def comparison_table(
    results: dict[str, list[SetResult]], more: Mapping[str, Mapping[str, str]] | None = None
) -> str:
    """A table of accuracies in per cent, one row per run (by its name) and one column per set.

    The columns are the sets of the first run; a set that a run did not measure is shown as "-".
    `more` has further columns by their headings, with the cells by the names of the runs.
    """
    sets, more = next(iter(results.values())), more or {}
    head = ("method", *(f"{one.name} ({_ROLES[one.role]})" for one in sets), *more)
    body = []
    for name, row in results.items():
        cells = {result.name: f"{100 * result.accuracy:.2f}" for result in row}
        own = (column[name] for column in more.values())
        body.append((name, *(cells.get(one.name, "-") for one in sets), *own))
    return aligned([head, *body])


def markdown_table(results: list[SetResult]) -> str:
    """A Markdown table of accuracies in per cent, one row per set."""
    rows = [_HEADER, ("---",) * len(_HEADER), *map(_cells, results)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
