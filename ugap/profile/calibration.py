"""How surprising human writers are where the scorer's entropy is `h`.

Design choices:

- Tokens are cut into entropy bins of equal count, as many as keep about 200 tokens of each kind, up to 32. All that
  depends on entropy is read off these bins: the calibration curve, and quantiles of surprisal and rank.
- Bins and a common curve are fitted to all kinds together. The bins of a kind are shrunk toward the common curve times
  the kind's own ratio (empirical Bayes), so that a kind of few texts has a usable curve.
- The curve `g(h)` is the isotonic regression, weighted by tokens, of the bins' mean surprisal: it assumes only that
  people are no less surprising where the scorer is less certain.
- The band around it resamples whole texts (tokens of one text are correlated) and fits the curve anew. Sums by text and
  bin make a resample one matrix product.
- Everything is rounded to 6 significant figures when it is fitted, so a saved profile is the fitted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugap.profile.plain import FloatArray, array, member, number, plain

MOST_BINS = 32
TOKENS_PER_BIN = 200
LEAST_BETWEEN = 0.02  # relative standard deviation of a bin between kinds: less counts as none
_LEAST = 1e-9
BIN_SURPRISAL_LEVELS = (0.01, 0.025, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.975, 0.99)
BIN_RANK_LEVELS = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)
_MOST_RANK = 2**31


def figures(values: ArrayLike) -> FloatArray:
    """`values` rounded to 6 significant figures, NaN kept: float32 scores carry no more."""
    array = np.asarray(values, dtype=np.float64)
    rounded = [float(f"{value:.6g}") for value in array.ravel()]
    return np.array(rounded, dtype=np.float64).reshape(array.shape)


def check_levels(levels: FloatArray, name: str) -> None:
    """See that the levels of quantiles are shares above 0, up to 1, each above the one before.

    Raises:
        ValueError: As said; the message begins with `name`.
    """
    if levels.ndim != 1 or not levels.size or not np.isfinite(levels).all():
        raise ValueError(f"{name} must be a list of shares")
    if levels[0] <= 0 or levels[-1] > 1 or (np.diff(levels) <= 0).any():
        raise ValueError(f"{name} must rise from above 0 to at most 1")


@dataclass(frozen=True, eq=False)
class CalibrationCurve:
    """The calibration curve `g(h) = E_human[s | h]`: mean surprisal of human text where the scorer's entropy is `h`.

    Between knots it is linear, below the first knot linear to `g(0) = 0` (a certain model is never surprised), and
    above the last knot it goes on with slope 1 (so as to keep the last known distance from `g(h) = h`, that of a
    calibrated model). It never falls and is never negative.

    Args:
        h (`np.ndarray` of shape `(K,)`): Entropy of the knots in nats, ascending.
        g (`np.ndarray` of shape `(K,)`): Mean human surprisal at the knots in nats, never falling.
        low (`np.ndarray` of shape `(K,)`): Lower end of the pointwise 95% band; NaN where a single text was fitted.
        high (`np.ndarray` of shape `(K,)`): Upper end of the band.

    Raises:
        ValueError: If the arrays do not have one common length, `h` or `g` falls, is negative or is not finite, or an
            end of the band is infinite or above the other.

    Example:
        >>> h, g, width = np.array([1.0, 2.0]), np.array([0.5, 2.5]), 0.1
        >>> curve = CalibrationCurve(h, g, low=g - width, high=g + width)
        >>> curve([0.5, 1.5, 3.0]).tolist()
        [0.25, 1.5, 3.5]
    """

    h: FloatArray
    g: FloatArray
    low: FloatArray
    high: FloatArray

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.h, self.g, self.low, self.high)}
        if len(shapes) != 1 or self.h.ndim != 1 or not self.h.size:
            raise ValueError("the calibration curve's h, g, low and high must be lists of one common length")
        for name, knots in (("h", self.h), ("g", self.g)):
            if not np.isfinite(knots).all() or knots[0] < 0 or (np.diff(knots) < 0).any():
                raise ValueError(f"the calibration curve's {name} must be finite, not negative and never fall")
        if np.isinf([self.low, self.high]).any() or (self.low > self.high).any():
            raise ValueError("the calibration curve's low must not be above its high, and neither infinite")

    def __call__(self, entropy: ArrayLike) -> FloatArray:
        """Mean human surprisal in nats at `entropy` in nats: an array of the same shape; NaN stays NaN."""
        entropy = np.maximum(np.asarray(entropy, dtype=np.float64), 0.0)
        h, g = self.h, self.g
        if h[0] > 0:
            h, g = np.concatenate([[0.0], h]), np.concatenate([[0.0], g])
        return np.asarray(np.interp(entropy, h, g) + np.maximum(entropy - h[-1], 0.0))


@dataclass(frozen=True, eq=False)
class EntropyBins:
    """Human surprisal and rank by the scorer's entropy, in `B` bins of about equal token count.

    Args:
        edges (`np.ndarray` of shape `(B - 1,)`): Inner edges in nats; a token on an edge belongs to the bin above it.
        n_tokens (`np.ndarray` of shape `(B,)`): Tokens in each bin.
        surprisal_levels (`np.ndarray` of shape `(Q,)`): Levels of the surprisal quantiles.
        surprisal (`np.ndarray` of shape `(B, Q)`): Quantiles of human surprisal in nats in each bin.
        rank_levels (`np.ndarray` of shape `(L,)`): Levels of the rank quantiles.
        rank (`np.ndarray` of shape `(B, L)`): Quantiles of rank in each bin: how far down the ranking writers go.

    Raises:
        ValueError: If the shapes do not fit together, a figure is negative or not finite, a bin holds no token, or
            edges, levels or the surprisals of a bin fall.
    """

    edges: FloatArray
    n_tokens: FloatArray
    surprisal_levels: FloatArray
    surprisal: FloatArray
    rank_levels: FloatArray
    rank: FloatArray

    def __post_init__(self) -> None:
        n_bins = self.n_tokens.size
        shapes = (self.edges.shape, self.surprisal.shape, self.rank.shape)
        expected = ((n_bins - 1,), (n_bins, self.surprisal_levels.size), (n_bins, self.rank_levels.size))
        if shapes != expected or (np.diff(self.edges) < 0).any():
            raise ValueError("the entropy bins' edges, levels and quantiles do not fit together")
        for name, values in (("edges", self.edges), ("surprisal", self.surprisal), ("rank", self.rank)):
            if not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"the entropy bins' {name} hold a figure that is negative or not finite")
        if not (np.isfinite(self.n_tokens) & (self.n_tokens >= 0)).all() or not self.n_tokens.any():
            raise ValueError("the entropy bins' n_tokens must be counts, not all of them 0")
        if (self.rank > _MOST_RANK).any():
            raise ValueError("the entropy bins' rank holds a rank beyond any vocabulary")
        if (np.diff(self.surprisal) < 0).any():
            raise ValueError("the entropy bins' surprisal must not fall from level to level")
        check_levels(self.surprisal_levels, "the entropy bins' surprisal_levels")
        check_levels(self.rank_levels, "the entropy bins' rank_levels")

    def index(self, entropy: ArrayLike) -> NDArray[np.intp]:
        """The bin, 0 to `B - 1`, that each entropy falls in."""
        return np.searchsorted(self.edges, np.asarray(entropy, dtype=np.float64), side="right")


class HumanTokens(NamedTuple):
    """Tokens of human texts of one kind, `N` of them.

    Args:
        entropy (`np.ndarray` of shape `(N,)`): Entropy in nats, finite.
        surprisal (`np.ndarray` of shape `(N,)`): Surprisal in nats, finite.
        rank (`np.ndarray` of shape `(N,)`): Rank, finite.
        text (`np.ndarray` of shape `(N,)`): Number of each token's text, 0 to `n_texts - 1`.
    """

    entropy: FloatArray
    surprisal: FloatArray
    rank: FloatArray
    text: NDArray[np.intp]


class Pooling(NamedTuple):
    """The curve that all kinds of a profile share, and how strongly it holds the curve of one kind.

    Args:
        edges (`np.ndarray` of shape `(B - 1,)`): Inner edges of the entropy bins, nats.
        h (`np.ndarray` of shape `(B,)`): Mean entropy in each bin, nats.
        g (`np.ndarray` of shape `(B,)`): Mean human surprisal in each bin, nats; each kind counts the same.
        surprisal (`np.ndarray` of shape `(B, Q)`): Quantiles of human surprisal, nats.
        rank (`np.ndarray` of shape `(B, L)`): Quantiles of rank.
        tokens (`np.ndarray` of shape `(B,)`): By bin, the number of tokens that the shared figures count as.
        spread (`float`): Standard deviation between kinds of the ratio of a kind's surprisal to the shared curve.
    """

    edges: FloatArray
    h: FloatArray
    g: FloatArray
    surprisal: FloatArray
    rank: FloatArray
    tokens: FloatArray
    spread: float

    def to_dict(self) -> dict[str, Any]:
        """The shared figures in the types of JSON."""
        return {name: plain(values) for name, values in self._asdict().items()}

    @classmethod
    def from_dict(cls, entry: Any) -> "Pooling":
        """The figures that `to_dict` wrote.

        Raises:
            ValueError: If `entry` is not of that form, or the shapes do not fit together; the message names the field.
        """
        columns = {name: array(member(entry, name), name) for name in cls._fields[:-1]}
        n_bins = len(columns["h"])
        shapes: dict[str, tuple[int, ...]] = {
            "edges": (n_bins - 1,),
            "h": (n_bins,),
            "g": (n_bins,),
            "tokens": (n_bins,),
        }
        shapes |= {"surprisal": (n_bins, len(BIN_SURPRISAL_LEVELS)), "rank": (n_bins, len(BIN_RANK_LEVELS))}
        for name, values in columns.items():
            if values.shape != shapes[name] or not np.isfinite(values).all() or (values < 0).any():
                raise ValueError(f"the shared {name} do not fit the entropy bins, or are no numbers from 0")
        spread = number(member(entry, "spread"), "spread")
        if not spread >= 0:
            raise ValueError("the shared spread is no number from 0")
        return cls(**columns, spread=spread)


def pool(kinds: Sequence[HumanTokens]) -> Pooling:
    """Fit what all kinds share: the bins, the common curve, and the number of tokens that it counts as in a bin.

    The bins hold about equal shares of the tokens, where every kind counts the same. The variance of the kinds' bins
    around the common curve, less what the scatter of their tokens explains, says how far kinds really differ. The
    variance of a token over that variance is the number of tokens at which a kind's own mean is worth as much as the
    common one (empirical Bayes, by moments). A single kind is not pooled.
    """
    entropy = np.concatenate([kind.entropy for kind in kinds])
    weight = np.concatenate([np.full(len(kind.text), 1 / len(kind.text)) for kind in kinds])
    n_bins = int(np.clip(len(entropy) // (TOKENS_PER_BIN * len(kinds)), 1, MOST_BINS))
    # Edges that are themselves tokens' entropies leave no bin empty, however many tokens share one entropy.
    edges = np.unique(_weighted_quantiles(entropy, weight, np.arange(n_bins) / n_bins))[1:]
    n_bins = len(edges) + 1
    surprisal = np.concatenate([kind.surprisal for kind in kinds])
    rank = np.concatenate([kind.rank for kind in kinds])
    members = _members(entropy, edges)
    sums = [weight[tokens].sum() for tokens in members]
    h = np.array([entropy[t] @ weight[t] / total for t, total in zip(members, sums, strict=True)])
    means = np.array([surprisal[t] @ weight[t] / total for t, total in zip(members, sums, strict=True)])
    g = _isotonic(means * sums, np.array(sums), h)
    held, spread = np.zeros(n_bins), 0.0
    if len(kinds) > 1:
        counts, totals, variances = (
            np.array(row) for row in zip(*(_bin_sums(kind, edges) for kind in kinds), strict=True)
        )
        ratio = totals.sum(1) / (counts @ g)
        spread = float(ratio.std(ddof=1))
        seen = counts > 1
        prior = ratio[:, None] * g
        off = np.divide(totals, counts, out=prior.copy(), where=seen) - prior
        noise = np.divide(variances, counts, out=np.zeros_like(prior), where=seen)
        # Relative to the curve, as both scale with it; a floor, so that a lucky draw does not pool without end.
        between = max(float(((off**2 - noise) / prior**2)[seen].mean()), LEAST_BETWEEN**2)
        within = np.divide(variances.sum(0), seen.sum(0), out=np.zeros(n_bins), where=seen.any(0))
        held = within / (between * g**2)
    return Pooling(
        edges=figures(edges),
        h=figures(h),
        g=figures(g),
        surprisal=figures([_weighted_quantiles(surprisal[t], weight[t], BIN_SURPRISAL_LEVELS) for t in members]),
        rank=figures([_weighted_quantiles(rank[t], weight[t], BIN_RANK_LEVELS) for t in members]),
        tokens=figures(held),
        spread=float(figures(spread)),
    )


def fit_calibration(
    tokens: HumanTokens, pooling: Pooling, *, resamples: int, rng: np.random.Generator
) -> tuple[CalibrationCurve, EntropyBins]:
    """Fit the calibration curve and the quantiles by entropy of one kind, shrunk toward those that all kinds share.

    Args:
        tokens (`HumanTokens`): Tokens of the kind.
        pooling (`Pooling`): The bins and the common curve; of `pool([tokens])` for the kind alone.
        resamples (`int`): Bootstrap resamples of the band.
        rng (`np.random.Generator`): Generator of the resamples.

    Returns:
        `tuple[CalibrationCurve, EntropyBins]`: The curve with its band, and the bins it was fitted on.
    """
    n_bins, n_texts = len(pooling.h), int(tokens.text.max()) + 1
    bins = np.searchsorted(pooling.edges, tokens.entropy, side="right")
    cells = tokens.text * n_bins + bins
    counts, sums = (
        np.asarray(np.bincount(cells, weights=weights, minlength=n_texts * n_bins).reshape(n_texts, n_bins), np.float64)
        for weights in (np.ones_like(tokens.surprisal), tokens.surprisal)  # both (texts, B)
    )
    ratio = _ratio(counts, sums, pooling)
    curve = _pooled_curve(counts.sum(0), sums.sum(0), ratio, pooling)
    low = high = np.full(n_bins, np.nan)
    if n_texts > 1:
        weights = rng.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=resamples).astype(np.float64)
        curves = [_pooled_curve(n, s, ratio, pooling) for n, s in zip(weights @ counts, weights @ sums, strict=True)]
        low, high = np.quantile(curves, [0.025, 0.975], axis=0)
    members = _members(tokens.entropy, pooling.edges)
    scale = curve / np.maximum(pooling.g, _LEAST)
    return (
        CalibrationCurve(h=pooling.h, g=figures(curve), low=figures(low), high=figures(high)),
        EntropyBins(
            edges=pooling.edges,
            n_tokens=np.array([len(held) for held in members], dtype=np.float64),
            surprisal_levels=np.array(BIN_SURPRISAL_LEVELS),
            surprisal=figures(
                _pooled(tokens.surprisal, members, BIN_SURPRISAL_LEVELS, scale[:, None] * pooling.surprisal, pooling)
            ),
            rank_levels=np.array(BIN_RANK_LEVELS),
            rank=figures(_pooled(tokens.rank, members, BIN_RANK_LEVELS, pooling.rank, pooling)),
        ),
    )


def _ratio(counts: FloatArray, sums: FloatArray, pooling: Pooling) -> float:
    """Ratio of the kind's surprisal to the common curve at its entropies, shrunk toward 1 where texts are few."""
    expected = counts @ pooling.g  # (texts,)
    ratio = float(sums.sum() / max(expected.sum(), _LEAST))
    if not pooling.spread or len(counts) < 2:
        return ratio
    residual = sums.sum(1) - ratio * expected
    variance = float((residual**2).sum() / expected.sum() ** 2 * len(counts) / (len(counts) - 1))
    return float((ratio * pooling.spread**2 + variance) / (pooling.spread**2 + variance))


def _pooled_curve(counts: FloatArray, sums: FloatArray, ratio: float, pooling: Pooling) -> FloatArray:
    """The isotonic curve of bin means, shrunk toward `ratio` times the common curve by `pooling.tokens`."""
    prior = ratio * pooling.g
    weights = counts + pooling.tokens
    curve = _isotonic(sums + pooling.tokens * prior, weights, pooling.h)
    if not pooling.spread:
        return curve
    # Pooling moves the mean of the kind. The sampler aims at this mean, so it is restored.
    return np.asarray(curve * (counts @ prior) / max(float(counts @ curve), _LEAST)) if counts.sum() else curve


def _pooled(
    values: FloatArray,
    members: Sequence[NDArray[np.intp]],
    levels: Sequence[float],
    common: FloatArray,
    pooling: Pooling,
) -> FloatArray:
    """Quantiles `(B, Q)` of the kind's bins, averaged with the common ones by tokens."""
    out = np.array(common, dtype=np.float64)
    for row, (tokens, prior) in enumerate(zip(members, pooling.tokens, strict=True)):
        if len(tokens):
            share = len(tokens) / (len(tokens) + prior)
            out[row] = share * np.quantile(values[tokens], levels) + (1 - share) * common[row]
    return out


def _bin_sums(tokens: HumanTokens, edges: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Count, sum and variance of the surprisal in each bin, shapes `(B,)`."""
    members = _members(tokens.entropy, edges)
    return (
        np.array([float(len(held)) for held in members]),
        np.array([tokens.surprisal[held].sum() for held in members]),
        np.array([tokens.surprisal[held].var(ddof=1) if len(held) > 1 else 0.0 for held in members]),
    )


def _members(entropy: FloatArray, edges: FloatArray) -> list[NDArray[np.intp]]:
    """The tokens of each bin, by index."""
    bins = np.searchsorted(edges, entropy, side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return np.split(np.argsort(bins, kind="stable"), np.cumsum(counts)[:-1])


def _weighted_quantiles(values: FloatArray, weights: FloatArray, levels: ArrayLike) -> FloatArray:
    """The smallest values whose cumulative weight reaches each level."""
    return np.asarray(np.quantile(values, np.asarray(levels), method="inverted_cdf", weights=weights))


def _isotonic(sums: FloatArray, counts: FloatArray, h: FloatArray) -> FloatArray:
    """Isotonic regression of the bins' means on `h`; a bin that a resample left empty is interpolated."""
    filled = counts > 0
    from scipy.optimize import isotonic_regression  # half a second, and only fitting needs it

    fitted = isotonic_regression(sums[filled] / counts[filled], weights=counts[filled]).x
    return np.asarray(np.interp(h, h[filled], fitted), dtype=np.float64)
