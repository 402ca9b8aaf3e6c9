"""The forest plot: estimates with their intervals around 0, a line of the panel for each name."""

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ugap.report.figure import FAINT, INK, SOFT

WIDTH, SIZE = 2.0, 5.5  # points, of an interval's line and of a mark
HUMAN_LEVEL = "human level"  # what the line at 0 of a plot of gaps is


@dataclass(frozen=True)
class Mark:
    """An estimate and its interval.

    Args:
        y (`float`): Its height: the number of its line, and what sets it apart from other marks there.
        value (`float`): The estimate.
        ci95 (`tuple[float, float]`): Its interval; NaN where there is none.
        told (`bool`): Whether the estimate can be told from 0.
        colour (`str`): Colour of its series.
        marker (`str`): Marker of its series.
    """

    y: float
    value: float
    ci95: tuple[float, float]
    told: bool
    colour: str
    marker: str


def draw_forest(
    axes: Axes,
    marks: Iterable[Mark],
    labels: Sequence[str],
    *,
    zero: str = "",
    shaded: Container[int] | None = None,
    first_at_top: bool = True,
    scale: float = 1.0,
) -> None:
    """Draw marks on a panel; a mark is filled where it can be told from 0.

    Args:
        axes (`Axes`): The panel.
        marks (`Iterable[Mark]`): The estimates.
        labels (`Sequence[str]`): Names of the lines, from line 0 on.
        zero (`str`, *optional*): Label above the line at 0.
        shaded (`Container[int]`, *optional*): Lines with a grey ground; by default every second.
        first_at_top (`bool`, *optional*, defaults to `True`): Whether line 0 is the highest, or the lowest.
        scale (`float`, *optional*, defaults to `1.0`): Size of the marks; smaller where they are close.
    """
    for line in range(len(labels)):
        if line % 2 == 0 if shaded is None else line in shaded:
            axes.axhspan(line - 0.5, line + 0.5, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.8)
    axes.axvline(0, color=INK, linewidth=1.2, zorder=2)
    if zero:
        axes.annotate(
            zero, (0, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="bottom", color=SOFT, size=7.5,
        )  # fmt: skip
    for mark in marks:
        y, colour = mark.y, mark.colour
        if all(map(math.isfinite, mark.ci95)):
            axes.plot(mark.ci95, [y, y], color=colour, linewidth=scale * WIDTH, solid_capstyle="butt", zorder=3)
        # Read in grey too: the verdict is in the fill, not in the colour.
        face, size = colour if mark.told else "white", scale * SIZE
        axes.plot([mark.value], [y], mark.marker, color=colour, markerfacecolor=face, markersize=size, zorder=4)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    ends = (-0.5, len(labels) - 0.5)
    axes.set_ylim(*(ends[::-1] if first_at_top else ends))


def limits(values: Iterable[float]) -> tuple[float, float]:
    """The ends of an x axis on which 0 and the values are seen, for panels that share it; NaN is left out.

    Example:
        >>> limits([1.0, math.nan, 2.0])
        (-0.12, 2.12)
    """
    finite = [0.0, *filter(math.isfinite, values)]
    # `or`: all values may be 0, and an axis of no width cannot be drawn.
    pad = 0.06 * (max(finite) - min(finite)) or 0.1
    return min(finite) - pad, max(finite) + pad


def key(label: str, colour: str, marker: str) -> Artist:
    """The entry of a series in the legend."""
    return Line2D([], [], color=colour, marker=marker, linewidth=WIDTH, markersize=SIZE, label=label)
