"""The documentation is easy to read: few sentences are long, and none uses phrases that read like a translation."""

import re

import pytest

from tests.docs.pages import PROSE, ROOT, sentences

# Words of a translation, each with the plain way to say it.
RULED_OUT = {
    r"as of": "in, from, or see",
    r"goes? on with": "resume, continue",
    r"(?<!not )to be had": "available",
    r"in the place of": "instead of",
    r"what is": "name the thing",
    r"beside": "compared with, in addition to",
    r"stands": "is, comes",
}


def test_sentences_are_split_as_a_reader_would():
    page = "# No\n\nOne `a. b` two. Three!\n- four\n  five\n- [six. seven](eight)\n\n| no |\n"
    page += "\n```\nno.\n```\n<!-- no. -->\n"
    assert sentences(page) == ["One CODE two.", "Three!", "four five", "six.", "seven"]


def test_at_most_three_sentences_in_a_hundred_are_long():
    lengths = [(len(one.split()), one, page) for page in PROSE for one in sentences(page.read_text(encoding="utf-8"))]
    long = [f"{page.relative_to(ROOT)}: {words} words: {one}" for words, one, page in lengths if words > 30]
    assert len(long) <= 0.03 * len(lengths), "\n".join(long)


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_sentence_reads_like_a_translation(page):
    text = " ".join(sentences(page.read_text(encoding="utf-8")))
    found = [
        f"{match[0]!r}: say {better}"
        for words, better in RULED_OUT.items()
        for match in re.finditer(rf"\b{words}\b", text)
    ]
    assert not found
