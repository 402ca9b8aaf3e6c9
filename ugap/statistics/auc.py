"""How well a score tells two kinds of texts apart: the area under the ROC curve, with sources as the independent units.

Design choices:

- Every text of one kind is compared with every text of the other, whatever their sources; a tie counts half.
- The interval is the symmetric bootstrap-t of `ugap.statistics.bootstrap`, cut to [0, 1]: whole sources are resampled
  with their texts of both kinds, and the standard errors, in the data and in each resample, are jackknives over
  sources. Sums of the comparisons by pair of sources make a resample two matrix products.
- Where no pair is out of order, resamples have no spread, and "1, certainly" would claim too much: the lower end is
  then Wilson's of so many sources that are all right.
"""

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import FEWEST_SOURCES, FloatArray, Sources, column, critical_value
from ugap.statistics.proportions import wilson


@dataclass(frozen=True)
class Auc:
    """The area under the ROC curve: how often a text of the first kind has the higher score.

    Args:
        n (`tuple[int, int]`): Texts of each kind.
        n_sources (`int`): Sources of all texts together.
        auc (`float`): In [0, 1]; 0.5 where the score tells nothing.
        ci95 (`tuple[float, float]`): 95% interval; NaN for a single source.
    """

    n: tuple[int, int]
    n_sources: int
    auc: float
    ci95: tuple[float, float]


def auc(
    higher: ArrayLike,
    sources_higher: Sources,
    lower: ArrayLike,
    sources_lower: Sources,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Auc:
    """Estimate the AUC of scores: the probability that one of `higher` is above one of `lower`, ties counted half.

    With 8, 23 and 46 sources of two texts of each kind, over 1,000 simulated data sets each, the interval covers the
    true AUC in 94.7 to 96.2% where it is 0.5 or 0.76, and in 89.2 to 95.8% where it is 0.91 or 0.98. The table is
    printed by `python -m pytest -m slow -s tests/statistics/test_auc.py`.

    Args:
        higher (`ArrayLike` of shape `(n,)`): Scores of the texts that should have the higher ones.
        sources_higher (`Sequence[Hashable]` of length `n`): The source of every such text.
        lower (`ArrayLike` of shape `(m,)`): Scores of the others.
        sources_lower (`Sequence[Hashable]` of length `m`): Their sources; those of both kinds are resampled together.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Raises:
        ValueError: If lengths differ, a side is empty, a score is not finite, or `resamples` is not positive.

    Example:
        >>> auc([0.9, 0.8, 0.3], ["a", "b", "c"], [0.1, 0.3, 0.2], ["a", "b", "c"]).auc
        0.9444444444444444
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected a positive number, got {resamples}")
    x, y = column(higher, "higher"), column(lower, "lower")
    for values, sources, name in ((x, sources_higher, "sources_higher"), (y, sources_lower, "sources_lower")):
        if len(values) != len(sources):
            raise ValueError(f"{name}: {len(sources)} sources for {len(values)} values")
    index: dict[Hashable, int] = {}
    of_x, of_y = ([index.setdefault(source, len(index)) for source in s] for s in (sources_higher, sources_lower))
    n = len(index)
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)  # (n, m)
    member_x, member_y = np.eye(n)[of_x], np.eye(n)[of_y]  # (n, G), (m, G): rows that point at their source
    pairs = member_x.T @ wins @ member_y  # (G, G): what the texts of one source win against those of another
    estimate = float(wins.mean())
    ends = _interval(pairs, member_x.sum(0), member_y.sum(0), estimate, resamples, seed) if n > 1 else (np.nan, np.nan)
    return Auc((len(x), len(y)), n, estimate, ends)


def _interval(
    pairs: FloatArray, of_x: FloatArray, of_y: FloatArray, estimate: float, resamples: int, seed: int
) -> tuple[float, float]:
    n = len(pairs)
    if estimate in (0.0, 1.0):
        low, high = wilson(n * estimate, n)
        return low, high
    error = float(np.sqrt(_replicates(np.ones((1, n)), pairs, of_x, of_y)[1][0]))
    shift = variance = np.zeros(0)
    if n >= FEWEST_SOURCES:
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
        value, variance = _replicates(weights, pairs, of_x, of_y)
        defined = np.isfinite(value)  # a resample without a text of one kind says nothing
        shift, variance = value[defined] - estimate, variance[defined]
    critical = critical_value(shift, variance, error, n)
    return max(estimate - critical * error, 0.0), min(estimate + critical * error, 1.0)


def _replicates(
    weights: FloatArray, pairs: FloatArray, of_x: FloatArray, of_y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The AUC of each resample and its jackknife variance over the drawn sources, for weights `(R, G)`."""
    n = weights.shape[1]
    won_x, won_y = weights @ pairs.T, weights @ pairs  # (R, G): won by one source's texts, and against them
    total, n_x, n_y = (weights * won_x).sum(1), weights @ of_x, weights @ of_y
    with np.errstate(divide="ignore", invalid="ignore"):
        value = total / (n_x * n_y)
        # Without one draw of a source: its rows and columns go, and what it won against itself goes once.
        rest = total[:, None] - won_x - won_y + np.diag(pairs)
        without = rest / ((n_x[:, None] - of_x) * (n_y[:, None] - of_y))
        change = np.where((weights > 0) & np.isfinite(without), without - value[:, None], 0.0)
    return value, (n - 1) / n * (weights * change**2).sum(1)
