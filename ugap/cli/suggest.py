"""Suggest a known name for an unknown one."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean X?"` for the closest known name, or an empty string where none is close.

    Example:
        >>> did_you_mean("mesure", ["measure", "score"])
        '; did you mean measure?'
        >>> did_you_mean("quux", ["measure", "score"])
        ''
    """
    matches = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
