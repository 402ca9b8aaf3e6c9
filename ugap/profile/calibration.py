"""How surprising human writers are where the scorer's entropy is `h`.

Design choices:

- Tokens are cut into entropy bins of equal count, as many as keep about 200 tokens each, up to 64. All that depends on
  entropy is read off these bins: the calibration curve, and quantiles of surprisal and rank.
- The curve `g(h)` is the isotonic regression, weighted by tokens, of the bins' mean surprisal: it assumes only that
  people are no less surprising where the scorer is less certain.
- The band around it resamples whole texts (tokens of one text are correlated) and fits the curve anew. Sums by text and
  bin make a resample one matrix product.
- Everything is rounded to 6 significant figures when it is fitted, so a saved profile is the fitted one.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_BINS = 64
TOKENS_PER_BIN = 200
BIN_SURPRISAL_LEVELS = (0.01, 0.025, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.975, 0.99)
BIN_RANK_LEVELS = (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)
_MOST_RANK = 2**31

FloatArray = NDArray[np.float64]


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
        for name, array in (("edges", self.edges), ("surprisal", self.surprisal), ("rank", self.rank)):
            if not np.isfinite(array).all() or (array < 0).any():
                raise ValueError(f"the entropy bins' {name} hold a figure that is negative or not finite")
        if not (np.isfinite(self.n_tokens) & (self.n_tokens > 0)).all():
            raise ValueError("the entropy bins' n_tokens must be above 0")
        if (self.rank > _MOST_RANK).any():
            raise ValueError("the entropy bins' rank holds a rank beyond any vocabulary")
        if (np.diff(self.surprisal) < 0).any():
            raise ValueError("the entropy bins' surprisal must not fall from level to level")
        check_levels(self.surprisal_levels, "the entropy bins' surprisal_levels")
        check_levels(self.rank_levels, "the entropy bins' rank_levels")

    def index(self, entropy: ArrayLike) -> NDArray[np.intp]:
        """The bin, 0 to `B - 1`, that each entropy falls in."""
        return np.searchsorted(self.edges, np.asarray(entropy, dtype=np.float64), side="right")


def fit_calibration(
    entropy: FloatArray,
    surprisal: FloatArray,
    rank: FloatArray,
    text: NDArray[np.intp],
    *,
    resamples: int,
    rng: np.random.Generator,
) -> tuple[CalibrationCurve, EntropyBins]:
    """Fit the calibration curve and the quantiles by entropy to the tokens of human texts.

    Args:
        entropy (`np.ndarray` of shape `(N,)`): Entropy of every token in nats, finite.
        surprisal (`np.ndarray` of shape `(N,)`): Surprisal of every token in nats, finite.
        rank (`np.ndarray` of shape `(N,)`): Rank of every token, finite.
        text (`np.ndarray` of shape `(N,)`): Number of the text that every token belongs to, 0 to `n_texts - 1`.
        resamples (`int`): Bootstrap resamples of the band.
        rng (`np.random.Generator`): Where they are drawn from.

    Returns:
        `tuple[CalibrationCurve, EntropyBins]`: The curve with its band, and the bins it was fitted on.
    """
    n_bins = int(np.clip(len(entropy) // TOKENS_PER_BIN, 1, MOST_BINS))
    # Edges that are themselves tokens' entropies leave no bin empty, however many tokens share one entropy.
    edges = np.quantile(entropy, np.arange(n_bins) / n_bins, method="inverted_cdf")
    edges = np.unique(edges)[1:]
    n_bins = len(edges) + 1
    bins = np.searchsorted(edges, entropy, side="right")

    n_texts = int(text.max()) + 1
    cells = text * n_bins + bins
    counts, sums = (
        np.bincount(cells, weights=weights, minlength=n_texts * n_bins).reshape(n_texts, n_bins)  # (texts, B)
        for weights in (np.ones_like(surprisal), surprisal)
    )
    h = np.bincount(bins, weights=entropy) / np.bincount(bins)
    g = _isotonic(sums.sum(axis=0), counts.sum(axis=0), h)
    low = high = np.full(n_bins, np.nan)
    if n_texts > 1:
        weights = rng.multinomial(n_texts, np.full(n_texts, 1 / n_texts), size=resamples).astype(np.float64)
        curves = [_isotonic(s, n, h) for s, n in zip(weights @ sums, weights @ counts, strict=True)]
        low, high = np.quantile(curves, [0.025, 0.975], axis=0)

    members = np.split(np.argsort(bins, kind="stable"), np.cumsum(np.bincount(bins))[:-1])
    return (
        CalibrationCurve(h=figures(h), g=figures(g), low=figures(low), high=figures(high)),
        EntropyBins(
            edges=figures(edges),
            n_tokens=np.array([len(tokens) for tokens in members], dtype=np.float64),
            surprisal_levels=np.array(BIN_SURPRISAL_LEVELS),
            surprisal=figures([np.quantile(surprisal[tokens], BIN_SURPRISAL_LEVELS) for tokens in members]),
            rank_levels=np.array(BIN_RANK_LEVELS),
            rank=figures([np.quantile(rank[tokens], BIN_RANK_LEVELS) for tokens in members]),
        ),
    )


def _isotonic(sums: FloatArray, counts: FloatArray, h: FloatArray) -> FloatArray:
    """Isotonic regression of the bins' means on `h`; a bin that a resample left empty is interpolated."""
    filled = counts > 0
    from scipy.optimize import isotonic_regression  # half a second, and only fitting needs it

    fitted = isotonic_regression(sums[filled] / counts[filled], weights=counts[filled]).x
    return np.asarray(np.interp(h, h[filled], fitted), dtype=np.float64)
