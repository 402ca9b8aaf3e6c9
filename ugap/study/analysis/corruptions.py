"""Texts that a reward must not take for human text: noise, shuffled words, loops, and the text of another story.

Each is made from a human continuation, so that it has about its length, and starts with its white space, so that what
follows the prefix is no new word glued to it.
"""

import random
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.study.excerpts import Excerpt
from ugap.unicode import text_fault


def random_tokens(tokenizer: PreTrainedTokenizerBase, n: int, rng: random.Random) -> str:
    """The text of `n` tokens, each drawn from the whole vocabulary but the special ones.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        n (`int`): Tokens; read again, the text may have a few more or less.
        rng (`random.Random`): Where they are drawn from.
    """
    # A special token is no noise that a policy could write: the samplers suppress it.
    special = set(tokenizer.all_special_ids)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    while True:
        text = tokenizer.decode(rng.choices(ids, k=n), clean_up_tokenization_spaces=False)
        if text_fault(text) is None:  # NUL is a token of some tokenizers, and no text
            return text


def shuffled_words(text: str, rng: random.Random) -> str:
    """The words of a text in another order.

    Example:
        >>> shuffled_words(" the king had lost his ring", random.Random(0))
        ' lost ring the king had his'
    """
    words = text.split()
    return _start(text) + " ".join(rng.sample(words, len(words)))


def looped(text: str, n: int) -> str:
    """The first `n` words of a text over and over, up to its number of words.

    Example:
        >>> looped(" so it goes, and so it went", 2)
        ' so it so it so it so'
    """
    words = text.split()
    return _start(text) + " ".join(words[i % min(n, len(words))] for i in range(len(words)))


def of_other_sources(excerpts: Sequence[Excerpt]) -> list[str]:
    """For each excerpt, how a person went on in another text: each continuation is taken about once.

    Raises:
        InputError: If all excerpts are of one source.
    """
    if len({excerpt.source for excerpt in excerpts}) < 2:
        raise InputError("all prefixes are of one text: there is no other to take a continuation from")
    n = len(excerpts)
    out = []
    for i, excerpt in enumerate(excerpts):
        # Half the list away first: neighbours are often of one source.
        others = (excerpts[(i + step) % n] for step in (*range(n // 2, n), *range(n // 2)))
        out.append(next(other.human for other in others if other.source != excerpt.source))
    return out


def _start(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
