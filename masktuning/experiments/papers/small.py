"""A table in small: the demo's model and generated tasks in place of the paper's."""

from __future__ import annotations

from dataclasses import replace

from masktuning.experiments.papers.spec import Column, Model, PaperTable, TableMethod
from masktuning.tasks import load_task

SEEDS = 2
_MODEL = Model("embedded", "the demo's model")


def in_small(table: PaperTable) -> PaperTable:
    """The same methods on generated tasks, without a search and without the paper's figures."""
    several = len(table.demo) > 1
    columns = [
        Column(f"{task} {one.name}" if several else one.name, task, [one.name], [one.name])
        for task in table.demo
        for one in load_task(task).sets
        if one.role != "train"
    ]
    return replace(
        table,
        name=f"{table.name}-demo",
        title=f"In small, as a demo: {table.title}",
        seeds=SEEDS,
        models=[_MODEL],
        columns=columns,
        methods=[_on_demo(method, table) for method in table.methods],
        figures={},
        only={},
        grid={},
        cannot={},
        notes=[
            f"A small embedded model on the generated {_named(table.demo)}; the paper's figures, "
            "which are of other models and tasks, are not shown."
        ],
    )


def _on_demo(method: TableMethod, table: PaperTable) -> TableMethod:
    """The method with the generated tasks that stand for its own."""
    tasks = [task for task, own in table.demo.items() if set(own) & set(method.tasks)]
    return replace(method, tasks=tasks)


def _named(tasks: dict[str, list[str]]) -> str:
    stands = ", ".join(f"{task} in place of {', '.join(own)}" for task, own in tasks.items())
    return f"task{'s' if len(tasks) > 1 else ''} {stands}"
