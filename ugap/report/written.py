"""Texts with the surprisal of their pieces, and the texts of several decodings side by side in the terminal."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

STACKED_BELOW = 100  # columns of a terminal that three texts need beside each other
PEOPLE_AT = 0.75  # of a bar
_BAR = 24  # its cells


class Written(NamedTuple):
    """A text by one decoding.

    Args:
        name (`str`): Name of the decoding.
        nll (`float`): Mean surprisal in nats per token; NaN for an empty text.
        pieces (`Sequence[tuple[str, float]]`): Its strings, each with a surprisal in nats; NaN is not known.
    """

    name: str
    nll: float
    pieces: Sequence[tuple[str, float]]


class Block(NamedTuple):
    """The texts that continue one prompt.

    Args:
        prompt (`str`): The prompt.
        human_level (`float`): Mean surprisal of human text, in nats per token, that the texts are compared with.
        people (`str`): The same in words.
        texts (`Sequence[Written]`): One text for each decoding.
    """

    prompt: str
    human_level: float
    people: str
    texts: Sequence[Written]


def side_by_side(block: Block, texts: Sequence[Text], width: int) -> RenderableType:
    """The texts of a block beside each other, or below each other on a narrow terminal, each under its surprisal.

    Args:
        block (`Block`): The texts. Each has a bar with a mark at the level of people.
        texts (`Sequence[Text]`): How each is shown.
        width (`int`): Columns of the terminal.
    """
    heads = [_head(one, block.human_level) for one in block.texts]
    if width < STACKED_BELOW:
        return Group(*(Group(head, text, "") for head, text in zip(heads, texts, strict=True)))
    table = Table.grid(expand=True, padding=(0, 3, 0, 0), pad_edge=False)
    for _ in texts:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*heads)
    table.add_row(*texts)
    return table


def level_of(nll: float, human_level: float) -> str:
    """The surprisal of a text as a share of that of human text.

    Example:
        >>> level_of(1.5, 3.0), level_of(float("nan"), 3.0)
        ('1.50 nats per token, 50% of people', 'no text')
    """
    if nll != nll:
        return "no text"
    return f"{nll:.2f} nats per token, {nll / human_level:.0%} of people"


def _head(one: Written, human_level: float) -> Text:
    people = round(PEOPLE_AT * _BAR)
    filled = 0 if one.nll != one.nll else min(round(people * one.nll / human_level), _BAR)
    cells = "█" * filled + "░" * (_BAR - filled)
    bar = f"{cells[:people]}┃{cells[people:]}"
    return Text.assemble((one.name, "bold"), f"\n{bar}\n", (f"{level_of(one.nll, human_level)}\n", "dim"))
