"""How varied texts are: n-grams that differ, and tokens that come back."""

from collections.abc import Sequence


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of the word n-grams of all texts together that differ (Li et al., 2016, arXiv 1510.03055, section 5).

    It falls with the amount of text: compare samples of one size only.

    Args:
        texts (`Sequence[str]`): Texts; words are what white space separates.
        n (`int`): Words of an n-gram.

    Returns:
        `float`: In (0, 1]; NaN where no text has `n` words.

    Example:
        >>> distinct_n(["a rose is a rose is a rose"], 2)
        0.42857142857142855
    """
    grams = [tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repetition(token_ids: Sequence[Sequence[int]], window: int = 128) -> float:
    """Share of tokens that were among the `window` tokens before them in the text (Welleck et al., 2020, arXiv
    1908.04319, section 5.2: rep/l, of the tokens that were written).

    Args:
        token_ids (`Sequence[Sequence[int]]`): Tokens of each text; the first of a text is not counted.
        window (`int`, *optional*, defaults to `128`): How far back a token counts as repeated.

    Returns:
        `float`: In [0, 1]; NaN where no text has two tokens.

    Example:
        >>> repetition([[1, 2, 1, 3]])
        0.3333333333333333
    """
    seen = [ids[i] in ids[max(0, i - window) : i] for ids in map(list, token_ids) for i in range(1, len(ids))]
    return sum(seen) / len(seen) if seen else float("nan")
