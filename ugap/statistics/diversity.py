"""How varied texts are: n-grams that differ and that come back, texts that are like each other, clusters.

All but `repeated_n` and [`repetition`][] rise or fall with the number and the length of the texts: compare samples of
one size only. Words are what white space separates.
"""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugap.errors import InputError

LIKE = 0.4  # cosine distance up to which two texts say about the same, see `n_clusters`


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
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else float("nan")


def repeated_n(texts: Sequence[str], n: int) -> float:
    """Mean share of a text's word n-grams that stood in the same text before (Welleck et al., 2020, arXiv 1908.04319,
    section 6.1: seq-rep-n, of words).

    Args:
        texts (`Sequence[str]`): Texts.
        n (`int`): Words of an n-gram.

    Returns:
        `float`: In [0, 1); NaN where no text has `n` words.

    Example:
        >>> repeated_n(["so it goes so it goes", "so it went"], 2)
        0.2
    """
    grams_by_text = [grams for grams in (_grams(text, n) for text in texts) if grams]
    shares = [1 - len(set(grams)) / len(grams) for grams in grams_by_text]
    return math.fsum(shares) / len(shares) if shares else float("nan")


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


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


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of every text with all others as its references (Zhu et al., 2018, arXiv 1802.01886).

    The BLEU of a sentence is that of sacrebleu (its tokens `13a`, exponential smoothing, effective order).

    Args:
        texts (`Sequence[str]`): Texts.

    Returns:
        `float`: In [0, 1], 1 where all texts are the same; NaN for fewer than two texts.

    Raises:
        InputError: If sacrebleu is not installed.

    Example:
        >>> round(self_bleu(["a king had three sons", "a king had three sons"]), 6)
        1.0
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise InputError('sacrebleu is not installed: pip install "ugap[diversity]"') from error
    if len(texts) < 2:
        return float("nan")
    bleu = BLEU(effective_order=True)
    scores = [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
    return min(math.fsum(scores) / len(scores) / 100, 1.0)  # sacrebleu counts to 100, and rounding beyond


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes of the texts, one after another, over their bytes when compressed by DEFLATE at its best (Shaib et al.,
    2024, arXiv 2403.00553, section 2: of gzip).

    Args:
        texts (`Sequence[str]`): Texts.

    Returns:
        `float`: The more the texts share, with each other or within themselves, the higher; NaN where all are empty.

    Example:
        >>> compression_ratio(["all work and no play"] * 8) > 3 > compression_ratio(["all work and no play"])
        True
    """
    raw = "\n".join(texts).encode("utf-8")
    return len(raw) / len(zlib.compress(raw, 9)) if raw.strip() else float("nan")


def vendi(embeddings: ArrayLike) -> float:
    """Effective number of different texts, from their embeddings (Friedman and Dieng, 2023, arXiv 2210.02410,
    definition 3.1: the Vendi score, with cosine similarity as its kernel).

    Args:
        embeddings (`ArrayLike` of shape `(n, D)`): An embedding of every text.

    Returns:
        `float`: 1 where all are the same, `n` where all are orthogonal.

    Example:
        >>> vendi([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
        1.8898815748423097
    """
    unit = _unit(embeddings)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 1e-12]  # rounding makes zeros slightly negative, and log(0) is -inf
    return float(np.exp(-np.sum(shares * np.log(shares))))


def n_clusters(embeddings: ArrayLike, threshold: float = LIKE) -> int:
    """Number of clusters of texts that say about the same.

    Clusters are joined, the nearest first, as long as the mean cosine distance between the texts of both is at most
    the threshold (average linkage).

    Args:
        embeddings (`ArrayLike` of shape `(n, D)`): An embedding of every text.
        threshold (`float`, *optional*, defaults to `0.4`): Largest mean cosine distance of clusters that are joined.

    Returns:
        `int`: From 1, where all texts are alike, to `n`.

    Example:
        >>> n_clusters([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        2
    """
    unit = _unit(embeddings)
    if len(unit) < 2:
        return len(unit)
    distances = np.clip(1 - unit @ unit.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)  # `squareform` refuses a diagonal with rounding errors
    from scipy.cluster.hierarchy import fcluster, linkage  # half a second, and the sampler imports this module
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distances, checks=False), "average")
    return int(fcluster(tree, threshold, "distance").max())


def _unit(embeddings: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(embeddings, dtype=np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise ValueError(f"embeddings: expected finite rows, one per text, got an array of shape {array.shape}")
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("embeddings: a row is zero, and has no direction")
    return np.asarray(array / lengths)
