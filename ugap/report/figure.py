"""The frame that all plots share: panels in a grid, a title, a note below, a PNG at the end.

Design choices:

- matplotlib's objects without pyplot: no global state, no display.
- The layout engine places the panels between a head and a foot of fixed height; text that can be long (names from the
  user) is wrapped to the width it has, so that nothing overlaps.
"""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ugap.files import replacing
from ugap.terminal import visible

DPI = 150
INK, SOFT, FAINT = "#222222", "#5f6368", "#e6e8eb"
MARGIN = 0.18  # inches
TITLE, NOTE, LABEL = 13, 8, 8.5  # points

# Okabe and Ito's palette: distinct with every common colour blindness; series differ by marker as well.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = ("o", "s", "D", "^", "v", "P")

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": LABEL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}


# The most lines of a title, a label or a note.
LINES = 8


def wrapped(text: str, inches: float, points: float, *, bold: bool = False) -> str:
    """The text, its control characters spelt out, in lines of at most this width by DejaVu Sans's mean letter.

    Text beyond eight lines is left out: a name of thousands of letters would leave no room for the plot.
    """
    # 0.54 em is the mean letter of DejaVu Sans, 0.61 that of its bold face.
    letter = points / 72 * (0.61 if bold else 0.54)
    width = max(8, int(inches / letter))
    return textwrap.fill(visible(text), width, break_on_hyphens=False, max_lines=LINES, placeholder=" …")


def columns(n_panels: int) -> int:
    """Panels side by side: one row up to three panels, two by two, then rows of three."""
    # Four in a row of three would leave one alone.
    return 2 if n_panels == 4 else min(3, max(1, n_panels))


@dataclass
class Frame:
    """A figure under construction; `axes` holds a row-major list with one entry per panel."""

    figure: Figure
    axes: list[Axes]

    def last_in_column(self, index: int) -> bool:
        """Whether no panel is below this one: it carries the label of the x axis."""
        return index + columns(len(self.axes)) >= len(self.axes)

    def first_in_row(self, index: int) -> bool:
        return index % columns(len(self.axes)) == 0


@contextmanager
def framed(
    path: str | Path,
    *,
    panels: int,
    panel_size: tuple[float, float],
    title: str,
    subtitle: str,
    note: str,
    legend: list[Artist] | None = None,
) -> Iterator[Frame]:
    """Yield a frame to draw on and write it to `path` as a PNG of 150 dots per inch when the block ends well.

    Args:
        path (`str` or `Path`): The PNG file, replaced as a whole.
        panels (`int`): Number of panels.
        panel_size (`tuple[float, float]`): Width and height of a panel with its labels in inches.
        title (`str`): The title, in bold.
        subtitle (`str`): How to read it.
        note (`str`): The basis of the numbers, below the panels.
        legend (`list[Artist]`, *optional*): Labelled handles of a legend between the subtitle and the panels.
    """
    n_columns = columns(panels)
    n_rows = -(-panels // n_columns)
    with matplotlib.rc_context(STYLE):
        width = max(7.0, n_columns * panel_size[0])
        inner = width - 2 * MARGIN
        title, subtitle = wrapped(title, inner, TITLE, bold=True), wrapped(subtitle, inner, LABEL)
        note = wrapped(note, inner, NOTE)
        line = 1.35 / 72  # inches of a line per point
        title_height = line * TITLE * (title.count("\n") + 1)
        subtitle_height = line * LABEL * (subtitle.count("\n") + 1) if subtitle else 0.0
        legend_columns = min(len(legend or ()), 3)
        legend_height = line * 9.5 * -(-len(legend) // legend_columns) + 0.06 if legend else 0.0
        head = MARGIN + title_height + 0.04 + subtitle_height + legend_height + 0.06
        foot = MARGIN + line * NOTE * (note.count("\n") + 1) if note else MARGIN / 2
        height = head + n_rows * panel_size[1] + foot

        figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
        # Attaches itself to the figure: savefig needs a canvas, and pyplot is not used.
        FigureCanvasAgg(figure)
        figure.set_layout_engine(
            ConstrainedLayoutEngine(
                rect=(0.08 / width, foot / height, 1 - 0.16 / width, 1 - (head + foot) / height),
                w_pad=0.08,
                h_pad=0.09,
                wspace=0.02,
                hspace=0.02,
            )
        )
        grid = figure.add_gridspec(n_rows, n_columns)
        frame = Frame(figure, [figure.add_subplot(grid[divmod(i, n_columns)]) for i in range(panels)])
        top, left = height - MARGIN, MARGIN / width
        figure.text(left, top / height, title, size=TITLE, weight="bold", va="top")
        top -= title_height + 0.04
        figure.text(left, top / height, subtitle, size=LABEL, color=SOFT, va="top")
        top -= subtitle_height
        if legend:
            figure.legend(
                handles=legend,
                loc="upper left",
                bbox_to_anchor=(left, top / height),
                ncols=legend_columns,
                borderaxespad=0.3,
                borderpad=0,
                columnspacing=2.0,
                handletextpad=0.6,
                fontsize=9,
            )
        figure.text(left, MARGIN * 0.7 / height, note, size=NOTE, color=SOFT, va="bottom")
        yield frame
        with replacing(path) as temporary:
            # No version in the metadata: the same numbers give the same bytes.
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def ordered_colours(n: int) -> list[tuple[float, float, float, float]]:
    """Colours for an ordered set of series: viridis without its pale end, distinct also in grey."""
    stops = np.array([0.4]) if n == 1 else np.linspace(0.05, 0.87, n)
    return [tuple(colour) for colour in matplotlib.colormaps["viridis"](stops)]
