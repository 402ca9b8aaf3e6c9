"""What the tests read in the documentation: its pages, their snippets and their sentences."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDES = [
    ROOT / "README.md",
    ROOT / "docs/quickstart.md",
    *sorted((ROOT / "docs/guides").glob("*.md")),
    ROOT / "docs/method.md",
]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]

# A fence at the start of a line, and the HTML comment above it where there is one.
_FENCE = re.compile(r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
_ITEM = re.compile(r"([-*+]|\d+\.)\s+")
# Lines that are no sentences: headings, table rows, images, directives, and blank ones.
_NO_PROSE = ("#", "|", ":::", "!")


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page.

    Attributes:
        language: The word behind the fence.
        text: The lines between the fences.
        line: The line of the page on which the text starts, from 1.
        note: The comment above the fence: `not run: WHY`, or `output` for what the block before prints.
    """

    language: str
    text: str
    line: int
    note: str

    @property
    def not_run(self) -> str | None:
        """Why the block is not run, if it is not."""
        return self.note.removeprefix("not run: ") if self.note.startswith("not run: ") else None


def snippets(page: Path) -> Iterator[Snippet]:
    """The fenced blocks of a page, in order."""
    source = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(source):
        line = source.count("\n", 0, match.start("text")) + 1
        yield Snippet(match["language"], match["text"], line, match["note"] or "")


def sentences(source: str) -> list[str]:
    """The sentences of Markdown text, a code span counted as one word; tables, headings and fenced blocks left out."""
    source = re.sub(r"<!--.*?-->", "", source, flags=re.S)
    source = re.sub(r"^```.*?^```$", "\n", source, flags=re.S | re.M)
    paragraphs: list[list[str]] = [[]]
    for line in source.splitlines():
        text = line.strip()
        if not text or text.startswith(_NO_PROSE):
            paragraphs.append([])
        elif item := _ITEM.match(text):
            paragraphs.append([text[item.end() :]])
        else:
            paragraphs[-1].append(text)
    found = []
    for lines in paragraphs:
        text = re.sub(r"`[^`]*`", "CODE", " ".join(lines))
        text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text).replace("*", "")
        found += [one for one in re.split(r"(?<=[.!?])[)\"']*\s+", text) if one]
    return found
