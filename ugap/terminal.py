"""What may reach a terminal: text, and no character that steers it.

Names, texts and prompts come from files and models. A file may hold escape sequences that repaint the screen, set its
title or fill the clipboard, and characters that reorder a line. `visible` alone decides which characters these are,
and `Terminal` writes none of them, whatever it is given.
"""

import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.text import Text

# Control characters but newline and tab, line and paragraph separators, bidirectional embeddings, overrides and
# isolates, and lone surrogates, which no encoding takes. Other format characters belong to scripts and emoji.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_LINES = re.compile("[\n\t]")


def visible(text: str) -> str:
    r"""`text` with every character that steers a terminal spelt out; newlines and tabs stay.

    Example:
        >>> visible("red \x1b[31m alert\n")
        'red \\x1b[31m alert\n'
    """
    return _STEERING.sub(_spelt, text)


def one_line(text: str) -> str:
    r"""`visible`, with newlines and tabs spelt out too: a name that cannot pass for a line of ours.

    Example:
        >>> one_line("news\nAll is well.")
        'news\\nAll is well.'
    """
    return _LINES.sub(_spelt, visible(text))


def _spelt(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")


class Terminal(Console):
    r"""A `rich` console that reads no markup in strings and writes no character that steers a terminal.

    Args:
        options: As for `rich.console.Console`.

    Example:
        >>> Terminal(width=40).print("[red] \x1b[2J")
        [red] \x1b[2J
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text: spelt out before a column is made as wide as it is."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable: rich's own control codes stay, and all text is `visible`."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


class Name:
    """A cell of words that breaks behind a hyphen, a slash, an underscore or a space, if its column is narrow.

    Args:
        text (`str`): The words.
    """

    def __init__(self, text: str):
        self._parts = re.findall(r"[^-/_ ]*[-/_ ]|[^-/_ ]+$", one_line(text)) or [""]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """From the longest part to the whole."""
        widths = [cell_len(part) for part in self._parts]
        return Measurement(max(widths), sum(widths)).clamp(max_width=options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As many parts on a line as it has room for."""
        lines = [""]
        for part in self._parts:
            if lines[-1] and cell_len(lines[-1]) + cell_len(part.rstrip()) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(map(str.rstrip, lines)), overflow="fold")
