"""The Python language reference as plain prose.

`pydoc_data.topics`, which ships with every CPython, holds the reference as text wrapped at 70 columns, with headings,
grammar, code and tables between the paragraphs. What stays here is what a person wrote as sentences:

- paragraphs and list items, each unwrapped into one line, without their indentation;
- a label such as `Note:` joined to the paragraph that it labels.

What goes: headings, grammar, code, tables, signatures, "See also" lists, notes on versions, footnotes and their marks,
and the sentence that announces a block which is gone ("The following constructs are equivalent:"). The larger topics
repeat smaller ones word for word, so a paragraph is kept in one topic alone, the shortest that has it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

MIN_CHARACTERS = 1200  # about 270 tokens

_UNDERLINE = re.compile(r"([*=\-~^\"])\1{2,}")
_CODE = re.compile(r"::=|^\s*(>>>|\.\.\.( |$)|\+[-=]+[+]|\|)", re.MULTILINE)
_BULLET = re.compile(r"([*•]|\d+\.|[a-z]\.)\s+")
_ASIDE = re.compile(r"\(?See |((Added|Changed|New) in|Deprecated since) version|Deprecated\b.{0,40}:$")
_LABEL = re.compile(r"\*{0,2}(Note|Warning|Caution|Important|Hint|Tip|CPython implementation detail):\*{0,2}")
_SENTENCE_END = re.compile(r"[.!?:][”\"')\]*]*$")
_FOOTNOTE_MARK = re.compile(r"\s*\[\d+\](?=[\s.,;:)]|$)")


@dataclass(frozen=True)
class _Block:
    """The lines between two blank lines."""

    indent: int  # columns before the first line
    lines: list[str]  # without that indentation

    @property
    def text(self) -> str:
        """The block as one line; a word that was broken at its hyphen is whole again."""
        text = ""
        for line in self.lines:
            text += line.strip() if not text or re.search(r"\w-$", text) else " " + line.strip()
        return re.sub(r"\s+", " ", text)


@dataclass(frozen=True)
class _Paragraph:
    indent: int  # of the sentences, behind the mark of a list item
    text: str


def _blocks(topic: str) -> Iterator[_Block]:
    for chunk in re.split(r"\n[ \t]*\n", topic.expandtabs()):
        lines = [line.rstrip() for line in chunk.split("\n") if line.strip()]
        if lines:
            indent = len(lines[0]) - len(lines[0].lstrip())
            yield _Block(indent, [line[min(indent, len(line) - len(line.lstrip())) :] for line in lines])


def _drop_announcement(kept: list[_Paragraph]) -> None:
    """Take the last sentence from the last paragraph, as long as that ends in a colon."""
    while kept and kept[-1].text.endswith(":"):
        last = kept.pop()
        sentences = re.split(r"(?<=[.!?])\s+", last.text)
        if len(sentences) > 1:
            kept.append(_Paragraph(last.indent, " ".join(sentences[:-1])))


def prose(topic: str) -> list[str]:
    r"""The paragraphs of a topic of `pydoc_data.topics`, each as one line.

    Example:
        >>> prose("The x statement\n***************\n\nIt ends the block\nthat it is in. So:\n\n   x = 1\n")
        ['It ends the block that it is in.']
    """
    kept: list[_Paragraph] = []
    outside: int | None = None  # where set, all that is indented deeper than this goes
    label = ""
    has_footnotes = "-[ Footnotes" in topic
    for block in _blocks(topic):
        if block.text.startswith("-[ Footnotes"):
            break
        if outside is not None and block.indent > outside:
            continue
        outside = None
        bullet = _BULLET.match(block.lines[0])
        announced = bool(kept) and kept[-1].text.endswith(":")
        if _CODE.search("\n".join(block.lines)) or (
            announced and not bullet and block.indent >= kept[-1].indent + 3  # a literal block
        ):
            outside = kept[-1].indent if announced else block.indent
            _drop_announcement(kept)
            continue
        if _ASIDE.match(block.text):
            outside = block.indent
            continue
        if _LABEL.fullmatch(block.text):
            label = block.text + " "
            continue
        if not bullet and len(block.lines) > 1 and block.lines[1].startswith("  "):  # a term above its definition
            block = _Block(block.indent + 3, block.lines[1:])
        if _is_prose(block, bool(bullet)):
            text = _FOOTNOTE_MARK.sub("", block.text) if has_footnotes else block.text
            kept.append(_Paragraph(block.indent + (bullet.end() if bullet else 0), label + text))
        label = ""
    _drop_announcement(kept)
    return [paragraph.text for paragraph in kept]


def _is_prose(block: _Block, is_item: bool) -> bool:
    if len(block.lines) > 1 and _UNDERLINE.fullmatch(block.lines[1]):
        return False
    sentence = _SENTENCE_END.search(block.text) and not block.text[0].islower()
    return bool(is_item or sentence) and len(block.text.split()) >= 4


def reference_texts(topics: Mapping[str, str], min_characters: int = MIN_CHARACTERS) -> dict[str, str]:
    """The topics that hold at least `min_characters` of prose of their own, by name in alphabetical order."""
    texts: dict[str, str] = {}
    seen: set[str] = set()
    # Shortest first: a paragraph stays in the topic that it is about, and goes from the chapters that repeat it.
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        new_paragraphs = [paragraph for paragraph in prose(topics[name]) if paragraph not in seen]
        text = "\n\n".join(new_paragraphs)
        if len(text) >= min_characters:
            texts[name] = text
            seen.update(new_paragraphs)
    return dict(sorted(texts.items()))
