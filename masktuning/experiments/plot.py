"""In-distribution against out-of-distribution accuracy, as a drawing.

Shapes: V variants, sorted by their out-of-distribution accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from masktuning.config.files import replaced_when_complete
from masktuning.experiments.statistics import Score, VariantStatistics

_SETTINGS = {
    "svg.hashsalt": "masktuning",  # else the ids within the file differ each time
    "svg.fonttype": "none",  # text stays text
    "font.size": 9.0,
}
Points = Mapping[str, tuple[Score, Score]]
"""The in-distribution and the out-of-distribution accuracy of each variant."""

# In inches:
_WIDTH = 5.0  # of the axes
_LABEL_HEIGHT = 0.2  # what the label of a variant takes
_CHARACTER_WIDTH = 0.085  # what one of its letters takes at most
_LEFT, _BELOW, _ABOVE = 0.7, 0.5, 0.1  # the margins, with the numbers and names of the axes


def draw(statistics: Mapping[str, VariantStatistics], baseline: str, path: Path) -> str | None:
    """Draws one point per variant, with its standard deviations, into an SVG file.

    The same figures give the same bytes. A drawing that is at `path` already is replaced, or
    removed if no new one can be made.

    Returns:
        None if the file was written, else a line that says why it was not.
    """
    path.unlink(missing_ok=True)
    points = {
        name: (found.dev.accuracy, found.mean_ood.accuracy)
        for name, found in statistics.items()
        if found.mean_ood is not None
    }
    if not points:
        return f"{path.name} was not drawn, since there are no out-of-distribution results."
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise  # one of its own requirements is missing
        return (
            f"{path.name} was not drawn, since matplotlib is not installed: "
            "pip install 'masktuning[plots]'"
        )
    import matplotlib.style

    # The style of the user's own matplotlibrc does not count.
    with matplotlib.style.context(["default", _SETTINGS]):
        figure = _figure(points, baseline)
        with replaced_when_complete(path) as partial:
            figure.savefig(partial, format="svg", metadata={"Date": None})
    return None


def _figure(points: Points, baseline: str) -> Any:
    """The drawing, with the labels in a column at its right."""
    from matplotlib.figure import Figure

    height = max(3.5, _LABEL_HEIGHT * len(points))
    labels = 0.3 + _CHARACTER_WIDTH * max(map(len, points))
    whole = (_LEFT + _WIDTH + labels, _BELOW + height + _ABOVE)
    figure = Figure(figsize=whole)
    axes = figure.add_axes(
        (_LEFT / whole[0], _BELOW / whole[1], _WIDTH / whole[0], height / whole[1])
    )
    names = sorted(points, key=lambda name: points[name][1].mean)
    for name in names:
        x, y = points[name]
        axes.errorbar(
            100 * x.mean,
            100 * y.mean,
            xerr=_bar(x),
            yerr=_bar(y),
            fmt="s" if name == baseline else "o",
            color="black" if name == baseline else "tab:blue",
            ecolor="lightgrey",
            markersize=5,
        )
    if baseline in points:
        x, y = points[baseline]
        axes.axvline(100 * x.mean, color="lightgrey", linewidth=0.8, linestyle="--", zorder=0)
        axes.axhline(100 * y.mean, color="lightgrey", linewidth=0.8, linestyle="--", zorder=0)
    axes.set_xlabel("in-distribution accuracy (%)")
    axes.set_ylabel("mean out-of-distribution accuracy (%)")
    _label(axes, names, points, _LABEL_HEIGHT / height)
    return figure


def _label(
    axes: Any,
    names: list[str],
    points: Points,
    gap: float,
) -> None:
    """Writes each name at the height of its point, or as near as the other names allow."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # an annotation must not widen the axes
    means_V = np.array([100 * points[name][1].mean for name in names])
    for name, position in zip(names, _apart((means_V - low) / (high - low), gap), strict=True):
        x, y = (100 * one.mean for one in points[name])
        axes.annotate(
            _plain(name),
            xy=(x, y),
            xytext=(1.04, position),
            textcoords="axes fraction",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": "lightgrey", "linewidth": 0.6},
        )


def _apart(wanted_V: np.ndarray, gap: float) -> np.ndarray:
    """Heights from 0 to 1, at least `gap` apart, in the order of the sorted `wanted_V`."""
    positions_V = wanted_V.copy()
    for i in range(1, len(positions_V)):
        positions_V[i] = max(positions_V[i], positions_V[i - 1] + gap)
    positions_V[-1] = min(positions_V[-1], 1.0)
    for i in range(len(positions_V) - 2, -1, -1):
        positions_V[i] = min(positions_V[i], positions_V[i + 1] - gap)
    return positions_V


def _bar(score: Score) -> float | None:
    """Half the length of an error bar, in per cent; none if there is only one seed."""
    return None if score.sd is None else 100 * score.sd


def _plain(name: str) -> str:
    """A name in which a dollar sign does not begin a formula."""
    return name.replace("$", r"\$")
