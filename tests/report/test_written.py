"""Texts with the surprisal of their pieces: side by side in the terminal, and as a page."""

import io
import math
import re

import pytest
from rich.text import Text

from ugap.report.page.writing import write_texts
from ugap.report.written import STACKED_BELOW, Block, Written, level_of, side_by_side
from ugap.terminal import Terminal

PIECES = [("Once", 6.0), (" upon", 0.5), ("\n\n<b>", 12.0), (" my own", math.nan)]
BLOCK = Block(
    "A <i>prompt",
    2.0,
    "people: 2.00",
    [
        Written("greedy", 0.5, PIECES),
        Written("loud", 4.0, []),
        Written("none", math.nan, []),
    ],
)


def lines(width: int) -> list[str]:
    file = io.StringIO()
    texts = [Text(f"{one.name} " * 30) for one in BLOCK.texts]
    Terminal(file=file, width=width).print(side_by_side(BLOCK, texts, width))
    return file.getvalue().splitlines()


def test_the_level_is_a_share_of_that_of_people():
    assert level_of(0.5, 2.0) == "0.50 nats per token, 25% of people"
    assert level_of(math.nan, 2.0) == "no text"


@pytest.mark.parametrize("width", [40, STACKED_BELOW - 1, STACKED_BELOW, 200])
def test_beside_or_below_each_other(width):
    shown = lines(width)
    assert max(map(len, shown)) <= width
    names = [line.split() for line in shown if set(line.split()) <= {one.name for one in BLOCK.texts} and line.strip()]
    assert ([one.name for one in BLOCK.texts] in names) == (width >= STACKED_BELOW)
    text = "\n".join(shown)
    # A quarter of the level of people; twice it, which is cut; none.
    bars = re.findall("[█░┃]+", text)
    assert [bar.count("█") for bar in bars] == [4, 24, 0]
    assert {(len(bar), bar.index("┃")) for bar in bars} == {(25, 18)}


def test_the_page(tmp_path):
    path = tmp_path / "texts.html"
    write_texts([BLOCK], "model <x>", "ugap generate --prompt '<i>'", path)
    html = path.read_text(encoding="utf-8")
    for text in ("A &lt;i&gt;prompt", "model &lt;x&gt;", "--prompt &#39;&lt;i&gt;&#39;", "25% of people"):
        assert text in html
    assert html.count('class="side"') == 3
    # Tints are shares of 8 nats; white space before a word has none, and what is not known neither.
    assert '<i style="--s:75" title="6.00 nats">Once</i> <i style="--s:6" title="0.50 nats">upon</i>\n\n' in html
    assert '<i style="--s:100" title="12.00 nats">&lt;b&gt;</i> my own' in html
    # The level of people is at three quarters of a bar.
    assert re.findall(r"--w:(\d+)", html) == ["19", "100", "0"]
    assert "<script" not in html
    assert "<pre>" in html
    write_texts([BLOCK], "m", "", path)
    assert "<pre>" not in path.read_text(encoding="utf-8")
