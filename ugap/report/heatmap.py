"""A text in the colours of its surprisal, for the terminal.

Design choices:

- Tokens that carry no surprise stay as they are; from one nat on, the background takes a tint, in few steps that an eye
  can tell apart and a legend can name.
- A character may be made of several tokens. It is shown once, with the highest surprisal of its tokens.
- What a model writes may hold escape sequences: no character that steers a terminal reaches it.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

from rich.text import Text
from transformers import PreTrainedTokenizerBase

from ugap.terminal import visible

# Surprisal in nats from which a tint holds, and the tint: from pale yellow to dark orange, read on any background.
STEPS = ((1.0, "#fff2c2"), (2.0, "#fed98e"), (3.0, "#fdb95c"), (5.0, "#f58b3c"), (8.0, "#d65a1e"))
NEWLINE = "↵"
_CONTEXT = 8  # tokens before a text that decide how its first is spelt
_WINDOW = 32


class Spelling:
    """Spell the tokens of a text one by one, as they come.

    A token that leaves a character unfinished adds nothing, and the one that finishes it adds the character. Special
    tokens add nothing.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        context (`Sequence[int]`, *optional*): Tokens before the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._ids = list(context)[-_CONTEXT:]
        self._decoded = self._decode()

    def add(self, token: int) -> str:
        """What the next token adds to the text."""
        self._ids.append(token)
        text = self._decode()
        # The replacement character: the bytes so far are the beginning of a character.
        if text.endswith("\ufffd"):
            return ""
        added = text[len(self._decoded) :]
        # Decoding all tokens at every step would take time that grows with their square.
        if len(self._ids) > _WINDOW:
            self._ids = self._ids[-_CONTEXT:]
            text = self._decode()
        self._decoded = text
        return added

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))


def token_strings(
    tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int], context: Sequence[int] = ()
) -> list[str]:
    """What each token adds to the text behind its context, as [`Spelling`][] says; an unfinished end is left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        token_ids (`Sequence[int]`): The `T` tokens.
        context (`Sequence[int]`, *optional*): Tokens before them.

    Returns:
        `list[str]`: `T` strings.
    """
    spelling = Spelling(tokenizer, context)
    return [spelling.add(token) for token in token_ids]


def pieces(strings: Sequence[str], surprisal: Sequence[float]) -> list[tuple[str, float]]:
    """The strings that show something, each with its surprisal in nats, or NaN where it is not known.

    A character of several tokens has the highest surprisal of them.

    Args:
        strings (`Sequence[str]`): What each of `T` tokens adds to the text.
        surprisal (`Sequence[float]`): Their surprisal in nats.

    Raises:
        ValueError: If there are more strings than figures, or fewer.

    Example:
        >>> pieces(["On", "", "ce"], [0.5, 7.0, 1.0])
        [('On', 0.5), ('ce', 7.0)]
    """
    out = []
    highest = math.nan
    for string, nats in zip(strings, surprisal, strict=True):
        highest = nats if math.isnan(highest) else max(highest, nats)
        if string:
            out.append((string, highest))
            highest = math.nan
    return out


def heat_map(strings: Sequence[str], surprisal: Sequence[float]) -> Text:
    """The text of tokens, each on a background that says how surprising it was.

    Args:
        strings (`Sequence[str]`): What each of `T` tokens adds to the text, as `token_strings` says it.
        surprisal (`Sequence[float]`): Their surprisal in nats; NaN is not known, and has no tint.

    Raises:
        ValueError: If there are more strings than figures, or fewer.

    Example:
        >>> heat_map(["Once", " upon", " a", " kumquat"], [6.1, 0.2, 0.1, 11.7]).plain
        'Once upon a kumquat'
    """
    out = Text()
    for string, nats in pieces(strings, surprisal):
        out.append(visible(string).replace("\n", NEWLINE + "\n"), _style(nats))
    return out


def legend() -> Text:
    """The tints and the surprisal from which each holds, on one line."""
    out = Text("surprisal in nats: ")
    out.append(f" below {STEPS[0][0]:g} ")
    for start, _ in STEPS:
        out.append(f" from {start:g} ", _style(start))
    return out


def _style(nats: float) -> str:
    step = 0 if math.isnan(nats) else bisect_right([start for start, _ in STEPS], nats)
    return f"black on {STEPS[step - 1][1]}" if step else ""
