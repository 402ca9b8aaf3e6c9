"""Features of whole human texts, by length: what a text of `n` tokens is compared with.

A profile's quantiles are of tokens. Whether one text is as people write is another question: it has a level of its own,
its tokens are correlated, and a short text scatters more. So the mean and the covariance of a few features are kept
for human texts cut to several lengths.

| feature | of a text |
|---|---|
| `surprisal` | mean surprisal, nats per token |
| `entropy` | mean entropy, nats per token |
| `low`, `high` | share of tokens that are less surprising than the human lower quartile, more than the upper |
| `deviation` | mean place of a token's surprisal among people's at the same entropy, less 0.5: in [-0.5, 0.5] |
| `spread` | mean distance of that place from the middle, less 0.25: in [-0.25, 0.25] |
| `pmi` | mean PMI with what comes before the text, nats per token |
| `repetition` | share of tokens that stand among the 128 before them in the text |

Design choices:
- `low` and `high` are about the shape of the surprisals, `deviation` and `spread` about surprisal given entropy: text
  that has people's means by mixing gibberish with loops differs in them.
- Distances are Mahalanobis': features that people vary together do not count twice, and a pair that people never have
  (high surprisal at low entropy) is far, though each alone is common. The covariance is shrunk toward its
  diagonal, since texts are few.
- Texts are cut at their start, so the distance of a token from what comes before is as in a continuation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ugap.profile.calibration import EntropyBins, figures
from ugap.profile.plain import FloatArray, array, member, plain
from ugap.statistics.diversity import repetition

if TYPE_CHECKING:
    from ugap.scoring.records import TokenScores

FEATURES = ("surprisal", "entropy", "low", "high", "deviation", "spread", "pmi", "repetition")
LENGTHS = (16, 32, 64, 128, 256)
FEWEST_TOKENS = 4  # fewer say nothing about a level
FEWEST_TEXTS = 16  # of a length, for its covariance to be worth anything
SHRINKAGE = 0.1
INSIDE = 0.75  # share of human texts that are as near as can be
NOTHING = 1e-12  # what is left, by rounding, of the variance of a feature that does not vary
_FIELDS = ("lengths", "n_texts", "mean", "covariance")


def text_features(scores: "TokenScores", quartiles: tuple[float, float], bins: EntropyBins) -> FloatArray:
    """The features of one text, in the order of `FEATURES`: shape `(8,)`; NaN where one cannot be computed.

    Args:
        scores (`TokenScores`): The scored text.
        quartiles (`tuple[float, float]`): Quartiles of human surprisal, nats.
        bins (`EntropyBins`): Human surprisal by entropy.
    """
    scored = np.isfinite(scores.surprisal) & np.isfinite(scores.entropy)
    s, h = scores.surprisal[scored].astype(np.float64), scores.entropy[scored].astype(np.float64)
    if not s.size:
        return np.full(len(FEATURES), np.nan)
    m = scores.marginal_surprisal
    pmi = np.nan if m is None else float(np.nanmean((m - scores.surprisal)[scored].astype(np.float64)))
    places = _places(s, bins, bins.index(h))
    return np.array(
        [
            s.mean(),
            h.mean(),
            (s < quartiles[0]).mean(),
            (s > quartiles[1]).mean(),
            places.mean() - 0.5,
            np.abs(places - 0.5).mean() - 0.25,
            pmi,
            repetition([scores.token_ids.tolist()]),
        ]
    )


def _places(surprisal: FloatArray, bins: EntropyBins, index: np.ndarray) -> FloatArray:
    """Where each surprisal stands among people's in its entropy bin, in [0, 1]."""
    out = np.empty_like(surprisal)
    levels = np.concatenate([[0.0], bins.surprisal_levels, [1.0]])
    for number in np.unique(index):
        known = bins.surprisal[number]
        # Below the lowest quantile down to 0; above the highest as far again.
        values = np.concatenate([[0.0], known, [2 * known[-1]]])
        here = index == number
        out[here] = np.interp(surprisal[here], values, levels)
    return out


@dataclass(frozen=True, eq=False)
class TextReference:
    """Mean and covariance of the features of human texts, by length.

    Args:
        lengths (`np.ndarray` of shape `(L,)`): Tokens that the texts were cut to, ascending.
        n_texts (`np.ndarray` of shape `(L,)`): Texts of at least that length.
        mean (`np.ndarray` of shape `(L, 8)`): Mean of each of `FEATURES`; NaN for `pmi` without marginals.
        covariance (`np.ndarray` of shape `(L, 8, 8)`): Their covariance between texts.

    Raises:
        ValueError: If the shapes do not fit together, lengths are no rising counts, or a covariance is none.
    """

    lengths: FloatArray
    n_texts: FloatArray
    mean: FloatArray
    covariance: FloatArray

    def __post_init__(self) -> None:
        n, k = len(self.lengths), len(FEATURES)
        if not n or self.n_texts.shape != (n,) or self.mean.shape != (n, k) or self.covariance.shape != (n, k, k):
            raise ValueError("the features of whole texts, their lengths and covariances do not fit together")
        if not ((self.lengths >= 1).all() and (np.diff(self.lengths) > 0).all() and (self.n_texts >= 1).all()):
            raise ValueError("the lengths of whole texts must rise, and every one needs a text")
        for matrix in self.covariance:
            known = ~np.isnan(np.diag(matrix))
            if not _is_covariance(matrix[np.ix_(known, known)]):
                raise ValueError("the covariance of the features of whole texts is none")

    @classmethod
    def fit(
        cls, texts: Sequence["TokenScores"], quartiles: tuple[float, float], bins: EntropyBins
    ) -> "TextReference | None":
        """Fit to scored human texts; `None` where fewer than 16 have the shortest length."""
        lengths, counts, means, covariances = [], [], [], []
        for length in LENGTHS:
            rows = [text_features(text.first(length), quartiles, bins) for text in texts if len(text) >= length]
            if len(rows) < FEWEST_TEXTS:
                break
            table = np.array(rows)
            lengths.append(float(length))
            counts.append(float(len(rows)))
            means.append(table.mean(axis=0))
            covariances.append(np.cov(table, rowvar=False))
        if not lengths:
            return None
        return cls(np.array(lengths), np.array(counts), figures(means), figures(covariances))

    @classmethod
    def mixed(cls, references: Sequence["TextReference | None"], share: FloatArray) -> "TextReference | None":
        """The reference of texts that are of one of several kinds: the covariance within kinds and between them.

        Args:
            references (`Sequence[TextReference or None]`): One for each kind; a kind without one is left out.
            share (`np.ndarray` of shape `(K,)`): Probability of each kind.

        Returns:
            `TextReference`, *optional*: At the lengths of the reference that has most; `None` where no kind has one.
        """
        kept = [(one, part) for one, part in zip(references, share, strict=True) if one is not None and part > 0]
        if not kept:
            return None
        lengths = max((one.lengths for one, _ in kept), key=len)
        weights = np.array([part for _, part in kept]) / sum(part for _, part in kept)
        counts, means, covariances = [], [], []
        for length in lengths:
            at = [one.at(int(length)) for one, _ in kept]
            mean = np.einsum("k,ki->i", weights, [m for m, _ in at])
            off = np.array([m for m, _ in at]) - mean
            means.append(mean)
            covariances.append(np.einsum("k,kij->ij", weights, [c for _, c in at] + off[:, :, None] * off[:, None, :]))
            counts.append(sum(float(np.interp(length, one.lengths, one.n_texts)) for one, _ in kept))
        return cls(lengths, np.array(counts), np.array(means), np.array(covariances))

    def whitened(self, features: FloatArray, n: int, which: Sequence[str] = FEATURES) -> FloatArray:
        """A text as a point `(8,)` among human texts of `n` tokens: they have mean 0 and covariance 1 there.

        `L^-1 (f - mean)`, with `L` the Cholesky factor of the covariance. A coordinate is NaN where `which` lacks the
        feature, human texts do not vary in it, or the text has none.

        Args:
            features (`np.ndarray` of shape `(8,)`): As of `text_features`.
            n (`int`): Tokens of the human texts to compare with.
            which (`Sequence[str]`, *optional*): The features that count.
        """
        mean, covariance = self.at(n)
        known = np.isfinite(features) & np.isfinite(mean) & (np.diag(covariance) > NOTHING)
        index = [i for i, name in enumerate(FEATURES) if name in which and known[i]]
        shrunk = covariance[np.ix_(index, index)]
        shrunk = (1 - SHRINKAGE) * shrunk + SHRINKAGE * np.diag(np.diag(shrunk))
        out = np.full(len(FEATURES), np.nan)
        out[index] = np.linalg.solve(np.linalg.cholesky(shrunk), (features - mean)[index])
        return out

    def distance(self, features: FloatArray, n: int, which: Sequence[str] = FEATURES) -> float:
        """Squared Mahalanobis distance of a text of `n` tokens from human texts, over the number of features.

        About 1 on average for human texts. A feature that is NaN, in the text or in the reference, or that does not
        vary between human texts, is left out; NaN where none is left.

        Args:
            features (`np.ndarray` of shape `(8,)`): As of `text_features`.
            n (`int`): Tokens of the text.
            which (`Sequence[str]`, *optional*): The features that count.
        """
        return float(squared_distance(self.whitened(features, n, which)))

    def closeness(self, features: FloatArray, n: int, which: Sequence[str] = FEATURES) -> float:
        """How near a text of `n` tokens is to human texts of that length: the `closeness` of its point.

        In [0, 1]; 0 for a text of fewer than 4 tokens; NaN as the distance.

        Args:
            features (`np.ndarray` of shape `(8,)`): As of `text_features`.
            n (`int`): Tokens of the text.
            which (`Sequence[str]`, *optional*): The features that count.
        """
        return float(closeness(self.whitened(features, n, which))) if n >= FEWEST_TOKENS else 0.0

    def standardised(self, features: FloatArray, n: int) -> FloatArray:
        """Each feature of a text of `n` tokens less its human mean, in human standard deviations: shape `(8,)`.

        NaN for a feature that does not vary between human texts.
        """
        mean, covariance = self.at(n)
        variance = np.diag(covariance)
        return (features - mean) / np.sqrt(np.where(variance > NOTHING, variance, np.nan))

    def at(self, n: int) -> tuple[FloatArray, FloatArray]:
        """Mean `(8,)` and covariance `(8, 8)` for texts of `n` tokens.

        Between two lengths both are interpolated in `log n`. Beyond the longest they are its own; below the shortest
        the covariance grows with `1 / n`.
        """
        place = np.interp(np.log(n), np.log(self.lengths), np.arange(len(self.lengths)))
        low = int(place)
        high = min(low + 1, len(self.lengths) - 1)
        share = place - low
        mean = (1 - share) * self.mean[low] + share * self.mean[high]
        covariance = (1 - share) * self.covariance[low] + share * self.covariance[high]
        return mean, covariance * max(1.0, self.lengths[0] / n)

    def to_dict(self) -> dict[str, Any]:
        """The reference in the types of JSON, NaN as None."""
        return {name: plain(getattr(self, name)) for name in _FIELDS} | {"features": list(FEATURES)}

    @classmethod
    def from_dict(cls, entry: Any) -> "TextReference":
        """The reference that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form; the message names the field.
        """
        if member(entry, "features") != list(FEATURES):
            raise ValueError(f"the features of whole texts are others than {', '.join(FEATURES)}")
        return cls(**{name: array(member(entry, name), name) for name in _FIELDS})


def squared_distance(points: FloatArray) -> FloatArray:
    """Mean square of the known coordinates of whitened points `(..., 8)`: shape `(...)`; NaN where none is known."""
    known = np.isfinite(points)
    total = np.where(known, points, 0.0)
    with np.errstate(invalid="ignore"):
        return np.asarray((total**2).sum(-1) / known.sum(-1))


def closeness(points: FloatArray) -> FloatArray:
    """How near whitened points `(..., 8)` are to human texts: shape `(...)`, in [0, 1].

    `1 / (1 + max(0, d² - q) / 4)`, with `d²` the `squared_distance` and `q` the third quartile of chi-squared over its
    degrees of freedom: 1.28 for eight features. So it is 1 for three human texts of four, as no text is better for
    being average. It falls slowly, so that far away there is still a slope.
    """
    degrees = np.maximum(np.isfinite(points).sum(-1), 1)
    outside = np.maximum(squared_distance(points) - chi_squared_quantile(INSIDE, degrees) / degrees, 0)
    return np.asarray(1 / (1 + outside / 4))


def chi_squared_quantile(share: float, degrees: ArrayLike) -> FloatArray:
    """The value that a share of a chi-squared distribution does not exceed, by degrees of freedom."""
    from scipy.special import gammaincinv  # the sampler imports this module, and never needs it

    return np.asarray(2 * gammaincinv(np.asarray(degrees) / 2, share))


def _is_covariance(matrix: FloatArray) -> bool:
    """Whether a matrix is symmetric, with no variance in any direction below 0 but for rounding."""
    if not matrix.size:
        return True
    if not np.isfinite(matrix).all() or not np.allclose(matrix, matrix.T, rtol=1e-4):
        return False
    return bool(np.linalg.eigvalsh(matrix)[0] >= -1e-4 * np.trace(matrix))
