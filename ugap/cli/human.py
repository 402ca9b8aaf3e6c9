"""The options that say which human text to follow, and their readers."""

from typing import Any

from ugap.cli.arguments import option


def like_option(group: str) -> Any:
    """The option `--like`."""
    return option(
        "write like the texts of this file: .jsonl(.gz), .csv(.gz) or .parquet with a column text, or plain text with "
        "an empty line between two texts",
        default=None,
        group=group,
        metavar="FILE",
    )


def reader_option(group: str) -> Any:
    """The option `--reader`."""
    return option(
        "a stronger model that text should be human to, instead of the profile's reader: asset, folder, .gguf file or "
        "Hub id; minutes at first use",
        default=None,
        group=group,
        metavar="NAME",
    )


def selection_of(words: list[str]) -> "str | dict[str, float]":
    """A selection of kinds from its words: one name, or `KIND=WEIGHT` for each kind of a mixture.

    Raises:
        InputError: A weight is no number, or several kinds come without weights.

    Example:
        >>> selection_of(["news"]), selection_of(["news=2", "letter=1"])
        ('news', {'news': 2.0, 'letter': 1.0})
    """
    from ugap.errors import InputError

    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    weights: dict[str, float] = {}
    for word in words:
        name, _, weight = word.rpartition("=")
        try:
            weights[name] = float(weight)
        except ValueError:
            name = ""
        if not name:
            raise InputError(f"--kind {word!r}: of several kinds each needs its weight, as in news=2 letter=1")
    return weights


def read_like(name: str | None) -> list[str]:
    """The texts of the file of `--like`; none without a file.

    Raises:
        InputError: The file cannot be read, or holds no text.
    """
    from ugap.data import load_texts
    from ugap.data.readers import SUFFIXES

    if name is None:
        return []
    if name.lower().endswith(SUFFIXES):
        return [row.text for row in load_texts(name, domain="like")]
    return [text for _, text in parts_of(name, b"\n\n")]


def parts_of(source: str, separator: bytes) -> list[tuple[str, str]]:
    """Name (file and row) and text of every part of a file that is not blank.

    Raises:
        InputError: The file cannot be read, is not UTF-8, or holds no text.
    """
    from ugap.errors import InputError
    from ugap.files import regular_file

    content = regular_file(source).read_bytes()
    # Split by hand: splitlines() of a text also splits at U+2028 and others, which a prompt may hold.
    named = []
    for number, line in enumerate(
        content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").split(separator), start=1
    ):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{source}, row {number}: invalid UTF-8 at byte {error.start + 1}") from error
        if text.strip():
            named.append((f"{source}, row {number}", text))
    if not named:
        raise InputError(f"{source}: there is no text")
    return named
