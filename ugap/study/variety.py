"""How varied and how repetitive the texts of one sample are."""

from collections.abc import Sequence

from ugap.scoring import TokenScores
from ugap.statistics import distinct_n, repetition

VARIETY = ("distinct_2", "distinct_4", "repetition")


def variety(texts: Sequence[TokenScores]) -> dict[str, float]:
    """Distinct-2, distinct-4 and repetition of texts; all fall or rise with the amount of text: compare samples of one
    size, such as the two sides of a [`~ugap.study.table.Cell`].

    Args:
        texts (`Sequence[TokenScores]`): Scored texts; of each, the text of its scored tokens counts.

    Returns:
        `dict[str, float]`: By the names of `VARIETY`; NaN where the texts are too short.
    """
    shown = [scored_text(scores) for scores in texts]
    repeated = repetition([scores.token_ids.tolist() for scores in texts])
    return {"distinct_2": distinct_n(shown, 2), "distinct_4": distinct_n(shown, 4), "repetition": repeated}


def scored_text(scores: TokenScores) -> str:
    """The text up to the end of its last scored token: what is left of a text that was cut by tokens."""
    return scores.text[: int(scores.offsets[-1, 1])] if len(scores) else ""
