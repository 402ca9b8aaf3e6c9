"""Strings that Python holds and no text file does: with a NUL, or with half of a surrogate pair."""


def text_fault(text: str) -> str | None:
    r"""What makes a string unfit to be scored, written or named, or `None`; characters are counted from 1.

    Example:
        >>> text_fault("a\ud83eb")
        'a lone surrogate (U+D83E) at character 2'
        >>> text_fault("fine") is None
        True
    """
    if "\0" in text:
        return f"a NUL byte at character {text.index(chr(0)) + 1}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start + 1}"
    return None
