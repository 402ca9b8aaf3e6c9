"""The parts of a terminal's tables: plain text in columns, and numbers with their intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ugap.report.rows import ends, number
from ugap.report.tables import MISSING
from ugap.terminal import Name, one_line


def text_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> Table:
    """A table of plain text: nothing in it is read as markup or steers the terminal.

    Args:
        title (`str`): The title above it; may be empty.
        header (`Sequence[str]`): Names of the columns.
        rows (`Iterable[Sequence[str]]`): Cells.
        words (`int`): Number of first columns that hold words, which fold where there is no room.
    """
    named = Text(one_line(title), style="bold") if title else None
    table = Table(title=named, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column, name in enumerate(header):
        table.add_column(
            Text(one_line(name)),
            overflow="fold",
            justify="left" if column < words else "right",
            no_wrap=column >= words,
        )
    for row in rows:
        table.add_row(*(Name(cell) if column < words else Text(one_line(cell)) for column, cell in enumerate(row)))
    return table


def figure(value: Any, form: str, *, scale: float = 1.0) -> str:
    """A number in a format; a dash where there is none.

    Example:
        >>> figure(0.25, ".1f", scale=100), figure(None, ".2f")
        ('25.0', '–')
    """
    finite = number(value)
    return format(scale * finite, form) if math.isfinite(finite) else MISSING


def with_interval(value: Any, ci95: Iterable[float | None] | None, form: str, *, scale: float = 1.0) -> str:
    """A number and its interval; without the interval where there is none.

    Example:
        >>> with_interval(0.5, [0.4, 0.6], "+.2f"), with_interval(0.5, [None, None], ".0%")
        ('+0.50 [+0.40, +0.60]', '50%')
    """
    # A single source has an estimate and no interval.
    shown = figure(value, form, scale=scale)
    low, high = (figure(end, form, scale=scale) for end in ends(ci95))
    return shown if MISSING in (shown, low, high) else f"{shown} [{low}, {high}]"
