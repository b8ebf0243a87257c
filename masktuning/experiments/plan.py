"""Which runs a comparison consists of; pure Python.

A comparison has variants (a method, perhaps with options of its own), grid points (values of the
options that are searched) and seeds. Every combination that is trained is a cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from masktuning.config.errors import UsageError

SEARCH, FINAL = "search", "final"
FIRST_SEARCH_SEED = 1001
"""Search seeds count up from here, so that they are none of the final seeds 1, 2, ..."""

Point = tuple[tuple[str, str], ...]
"""Options and their values in a fixed order; () where nothing is searched."""


@dataclass(frozen=True)
class Variant:
    """A method with the options that set it apart from the other variants of a comparison."""

    method: str
    options: Point = ()

    @property
    def name(self) -> str:
        """The method alone, or with its options: mask_tuning:alpha=0.1,gate=label."""
        return f"{self.method}:{_joined(self.options)}" if self.options else self.method

    @classmethod
    def parse(cls, text: str) -> Variant:
        """The variant of a name as `name` gives it.

        Raises:
            UsageError: if an option has no value.
        """
        method, colon, rest = text.partition(":")
        pairs = [one.partition("=") for one in rest.split(",")] if colon else []
        if not method or any(not (name and value) for name, _, value in pairs):
            raise UsageError(
                f"--methods {text}: write a method, or METHOD:option=value,option=value"
            )
        return cls(method, tuple((name.replace("-", "_"), value) for name, _, value in pairs))


@dataclass(frozen=True)
class Cell:
    """One training run of a comparison."""

    variant: str
    point: Point
    seed: int
    stage: str
    """`SEARCH` if the run serves to choose a grid point, `FINAL` if its figures are reported."""

    @property
    def key(self) -> str:
        """A readable name that no other cell of the comparison has."""
        options = f" {_joined(self.point)}" if self.point else ""
        return f"{self.stage} {self.variant}{options} seed={self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a comparison trains."""

    variants: tuple[Variant, ...]
    grids: Mapping[str, tuple[Point, ...]]
    """The grid points of each variant, by its name; those without a choice have one point."""
    search_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    proposals: Mapping[str, int] = field(default_factory=dict)
    """How many grid points are proposed for each variant, by its name, of which `grids` holds
    those so far; a variant whose points were all given from the start is missing."""

    def is_searched(self, variant: str) -> bool:
        """Whether a variant has grid points to choose among."""
        return variant in self.proposals or len(self.grids[variant]) > 1

    def search_cells(self) -> list[Cell]:
        """The runs that the grid points are chosen by; a variant with one point needs none.

        All variants of one seed come before the next seed, so that a comparison that is stopped
        has something to say about each of them.
        """
        return [
            Cell(variant.name, point, seed, SEARCH)
            for seed in self.search_seeds
            for variant in self.variants
            if self.is_searched(variant.name)
            for point in self.grids[variant.name]
        ]

    def final_cells(self, choices: Mapping[str, Point]) -> list[Cell]:
        """The runs to report, for the variants whose grid point is in `choices`."""
        return [
            Cell(variant.name, choices[variant.name], seed, FINAL)
            for seed in self.final_seeds
            for variant in self.variants
            if variant.name in choices
        ]

    def count(self) -> int:
        """The number of cells of both stages, those of points still to be proposed included."""
        return sum(self.count_of(variant.name) for variant in self.variants)

    def count_of(self, variant: str) -> int:
        """The number of cells of one variant."""
        points = self.proposals.get(variant, len(self.grids[variant]))
        searched = points * len(self.search_seeds) if self.is_searched(variant) else 0
        return searched + len(self.final_seeds)


def open_options(
    grid: Mapping[str, tuple[str, ...]], variant: Variant, has: set[str]
) -> dict[str, tuple[str, ...]]:
    """The part of a grid that a variant searches: options that it has and does not fix.

    Args:
        grid: the values of each searched option.
        variant: the variant; an option that its name fixes is not searched.
        has: the names of all options that a run with its method has.
    """
    fixed = {name for name, _ in variant.options}
    return {name: values for name, values in grid.items() if name in has - fixed}


def grid_points(
    grid: Mapping[str, tuple[str, ...]], variant: Variant, has: set[str]
) -> list[Point]:
    """All combinations of the values that a variant searches; see `open_options`."""
    points: list[Point] = [()]
    for name, values in open_options(grid, variant, has).items():
        points = [(*point, (name, value)) for point in points for value in values]
    return points


def _joined(options: Point) -> str:
    return ",".join(f"{name}={value}" for name, value in options)
