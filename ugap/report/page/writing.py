"""The page of texts: each token tinted by its surprisal, and decodings side by side.

Design choices:

- One file without a script, in the style of the page of studies.
- A bar shows the level of each text, with a mark at the level of people.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import ugap
from ugap.files import replacing
from ugap.report.page.page import template_environment
from ugap.report.written import PEOPLE_AT, Block, level_of

_FULL = 8.0  # nats of a full tint, as in the reader of studies


def write_texts(blocks: Sequence[Block], model: str, command: str, path: str | Path) -> None:
    """Write the page.

    Args:
        blocks (`Sequence[Block]`): The prompts and their texts.
        model (`str`): Who wrote.
        command (`str`): The command that writes the same texts.
        path (`str` or `Path`): The HTML file.
    """
    style = files("ugap.report.page").joinpath("page.css").read_text(encoding="utf-8")
    html = (
        template_environment()
        .get_template("writing.html.j2")
        .render(
            version=ugap.__version__,
            style=style,
            model=model,
            command=command,
            people_at=round(100 * PEOPLE_AT),
            blocks=[_shown(block) for block in blocks],
        )
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _shown(block: Block) -> dict[str, object]:
    return {
        "prompt": block.prompt,
        "people": block.people,
        "texts": [
            {
                "name": one.name,
                "level": level_of(one.nll, block.human_level),
                "filled": 0 if one.nll != one.nll else min(round(100 * PEOPLE_AT * one.nll / block.human_level), 100),
                "pieces": [(*_split(string), _tint(nats), f"{nats:.2f}") for string, nats in one.pieces],
            }
            for one in block.texts
        ],
    }


def _tint(nats: float) -> int | None:
    return None if nats != nats else round(100 * min(nats / _FULL, 1.0))


def _split(string: str) -> tuple[str, str]:
    """The white space at the beginning, which has no tint, and the rest."""
    word = string.lstrip()
    return (string[: len(string) - len(word)], word) if word else ("", string)
