"""How varied and how repetitive the texts of one sample are."""

from collections.abc import Sequence

import numpy as np

from ugap.scoring import TokenScores
from ugap.statistics import distinct_n, repetition
from ugap.statistics.diversity import LIKE, compression_ratio, n_clusters, repeated_n, self_bleu, vendi

VARIETY = ("distinct_2", "distinct_4", "repetition")


def variety(texts: Sequence[TokenScores]) -> dict[str, float]:
    """Distinct-2, distinct-4 and repetition of texts; all fall or rise with the amount of text: compare samples of one
    size, such as the two sides of a `ugap.study.pairs.Cell`.

    Args:
        texts (`Sequence[TokenScores]`): Scored texts; of each, the text of its scored tokens counts.

    Returns:
        `dict[str, float]`: By the names of `VARIETY`; NaN where the texts are too short.
    """
    shown = [scored_text(scores) for scores in texts]
    repeated = repetition([scores.token_ids.tolist() for scores in texts])
    return {"distinct_2": distinct_n(shown, 2), "distinct_4": distinct_n(shown, 4), "repetition": repeated}


def spread(points: np.ndarray) -> dict[str, float]:
    """How much whole texts differ, as root of the mean variance of their whitened features: 1 for human texts.

    Args:
        points (`np.ndarray` of shape `(seeds, prefixes, features)`): Texts as points of
            `ugap.profile.texts.TextReference.whitened`. A prefix counts where every seed has a text, a feature where
            all these texts have it.

    Returns:
        `dict[str, float]`: `total` of all texts. With two seeds or more, `within` is of the texts of one prefix, and
        `between` of the means of prefixes, less what `within` adds to it; NaN where there are too few texts.

    Example:
        >>> {name: round(value, 3) for name, value in spread(np.array([[[0.0], [2.0]], [[2.0], [4.0]]])).items()}
        {'total': 1.633, 'within': 1.414, 'between': 1.0}
    """
    points = points[:, np.isfinite(points).any(2).all(0)]
    points = points[:, :, np.isfinite(points).all((0, 1))]
    seeds, n, features = points.shape
    values = dict.fromkeys(("total", "within", "between"), float("nan"))
    if features and seeds * n > 1:
        values["total"] = float(np.sqrt(points.reshape(seeds * n, -1).var(0, ddof=1).mean()))
    if features and seeds > 1 and n > 1:
        within = points.var(0, ddof=1).mean()
        between = points.mean(0).var(0, ddof=1).mean() - within / seeds
        values |= {"within": float(np.sqrt(within)), "between": float(np.sqrt(max(between, 0.0)))}
    return values


def scored_text(scores: TokenScores) -> str:
    """The text up to the end of its last scored token, where texts are cut by tokens."""
    return scores.text[: int(scores.offsets[-1, 1])] if len(scores) else ""


def sample_variety(
    texts: Sequence[str], embeddings: np.ndarray | None = None, *, bleu: bool = True, threshold: float = LIKE
) -> dict[str, float]:
    """How varied several texts to one prompt are; compare samples of one number of texts of one length.

    Args:
        texts (`Sequence[str]`): The texts.
        embeddings (`np.ndarray` of shape `(n, D)`, *optional*): Their embeddings, for `clusters` and `vendi`.
        bleu (`bool`, *optional*, defaults to `True`): With self-BLEU, which needs the extra `diversity`.
        threshold (`float`, *optional*, defaults to `0.4`): See `ugap.statistics.diversity.n_clusters`.

    Returns:
        `dict[str, float]`: `distinct_2`, `distinct_4`, `self_bleu`, `compression_ratio`, `repeated_4` and, with
        embeddings, `clusters` and `vendi`; the functions of `ugap.statistics.diversity` define them.
    """
    values = {"distinct_2": distinct_n(texts, 2), "distinct_4": distinct_n(texts, 4)}
    if bleu:
        values["self_bleu"] = self_bleu(texts)
    values |= {"compression_ratio": compression_ratio(texts), "repeated_4": repeated_n(texts, 4)}
    if embeddings is not None:
        values |= {"clusters": float(n_clusters(embeddings, threshold)), "vendi": vendi(embeddings)}
    return values
