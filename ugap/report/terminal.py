"""What the tables of a terminal are made of: plain text in columns, and numbers with their intervals."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from ugap.report.rows import ends, number
from ugap.report.tables import MISSING
from ugap.terminal import one_line


def text_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int) -> Table:
    """A table of plain text: nothing in it is read as markup or steers the terminal.

    Args:
        title (`str`): What stands above it; may be empty.
        header (`Sequence[str]`): Names of the columns.
        rows (`Iterable[Sequence[str]]`): Cells.
        words (`int`): So many of the first columns are words, which fold where there is no room.
    """
    named = Text(one_line(title), style="bold") if title else None
    made = Table(title=named, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for place, name in enumerate(header):
        made.add_column(
            Text(one_line(name)), overflow="fold", justify="left" if place < words else "right", no_wrap=place >= words
        )
    for row in rows:
        made.add_row(*(Text(one_line(cell)) for cell in row))
    return made


def figure(value: Any, form: str, *, scale: float = 1.0) -> str:
    """A number in a format; a dash where there is none.

    Example:
        >>> figure(0.25, ".1f", scale=100), figure(None, ".2f")
        ('25.0', '–')
    """
    found = number(value)
    return format(scale * found, form) if math.isfinite(found) else MISSING


def with_interval(value: Any, ci95: Iterable[float | None] | None, form: str, *, scale: float = 1.0) -> str:
    """A number and its interval; without the interval where there is none.

    Example:
        >>> with_interval(0.5, [0.4, 0.6], "+.2f"), with_interval(0.5, [None, None], ".0%")
        ('+0.50 [+0.40, +0.60]', '50%')
    """
    shown = figure(value, form, scale=scale)
    low, high = (figure(end, form, scale=scale) for end in ends(ci95))
    return shown if MISSING in (shown, low, high) else f"{shown} [{low}, {high}]"
