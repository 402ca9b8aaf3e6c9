"""The one bootstrap behind every interval and p-value: whole sources are resampled, the mean is over prefixes.

Design choices:

- Prefixes cut from one source text are correlated, so sources are the units: a resample draws sources with replacement
  and takes all their prefixes. With weights `W` (how often each source was drawn) a resampled mean is
  `(W @ sums) / (W @ counts)`: no resampled data set is ever built.
- The interval is the symmetric bootstrap-t, `estimate ± q * se`, where `q` is the 95% quantile of `|t*|` over resamples
  (Hall 1988, "On symmetric bootstrap confidence intervals") and every standard error, in the data and in each resample,
  is the jackknife over sources. The jackknife knows how far one large source can pull the mean, which the linearised
  standard error does not. The percentile and BCa intervals are too short with 8 to 16 sources, the equal-tailed
  bootstrap-t with heavy tails and with sources of unequal size: `tests/statistics/test_coverage.py` measures them all.
- The p-value is the share of resamples whose `|t*|` reaches `|estimate| / se`, so p is below 0.05 exactly where the
  interval leaves 0 out. A rank test would test another null: on skewed differences of mean 0 it rejects far too often.
- With fewer than 5 sources, or where so many sources agree that over 5% of resamples have no spread, there is no usable
  `q`: Student's t with (sources - 1) degrees of freedom takes its place. One source gives NaN.
- Resamples are drawn in chunks, so memory stays small with thousands of sources, and no result depends on the chunk.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
FEWEST_SOURCES = 5  # below it, a bootstrap-t says nothing
_CHUNK_CELLS = 1 << 20  # resamples x sources held at once: 8 MiB an array

FloatArray = NDArray[np.float64]
Sources = Sequence[Hashable] | NDArray[Any]


def column(values: ArrayLike, name: str) -> FloatArray:
    """`values` as a float64 vector of finite numbers, or a `ValueError` that names the argument."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected one value per prefix, got an array of shape {array.shape}")
    if not array.size:
        raise ValueError(f"{name}: no values")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"{name}: the value at position {where} is {array[where]}, not a finite number")
    return array


@dataclass(frozen=True, eq=False)
class Clusters:
    """Prefix values gathered by source.

    Args:
        sources (`list`): The `G` sources, in order of first appearance.
        sums (`np.ndarray` of shape `(G,)`): Sum of the values of each source.
        counts (`np.ndarray` of shape `(G,)`): Number of prefixes of each source.
    """

    sources: list[Hashable]
    sums: FloatArray
    counts: FloatArray

    @classmethod
    def gather(cls, values: FloatArray, sources: Sources, name: str) -> "Clusters":
        """Sum `values` by source; `name` is the argument named in the error where the lengths differ."""
        if len(values) != len(sources):
            raise ValueError(f"{name}: {len(sources)} sources for {len(values)} values")
        index: dict[Hashable, int] = {}
        labels = np.array([index.setdefault(source, len(index)) for source in sources])
        order = np.argsort(values, kind="stable")  # sums do not depend on the order of rows, not even in the last digit
        sums = np.bincount(labels[order], weights=values[order], minlength=len(index))
        counts = np.bincount(labels, minlength=len(index))
        return cls(list(index), np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64))

    @property
    def mean(self) -> float:
        """Mean over prefixes."""
        return math.fsum(self.sums) / float(self.counts.sum())

    @property
    def source_means(self) -> FloatArray:
        """Mean of each source, shape `(G,)`: the independent units of tests and effect sizes."""
        return self.sums / self.counts

    def take(self, sources: Sequence[Hashable]) -> "Clusters":
        """The clusters of `sources`, in that order."""
        position = {source: i for i, source in enumerate(self.sources)}
        index = np.array([position[source] for source in sources])
        return Clusters(list(sources), self.sums[index], self.counts[index])


@dataclass(frozen=True, eq=False)
class Group:
    """A signed sum of `K` means over the same `G` sources, which are resampled together.

    Args:
        clusters (`Sequence[Clusters]`): One entry per mean, the sources in the same order in each.
        signs (`Sequence[int]`): `1` or `-1` per mean.
    """

    clusters: Sequence[Clusters]
    signs: Sequence[int]

    @property
    def n_sources(self) -> int:
        return len(self.clusters[0].sources)

    @property
    def estimate(self) -> float:
        return sum(sign * part.mean for sign, part in zip(self.signs, self.clusters, strict=True))

    def variance(self) -> float:
        """Jackknife variance of the estimate; needs two sources."""
        weights = np.ones((1, self.n_sources))
        return float(self._resampled(weights, *self._centred())[1][0])

    def influence(self) -> FloatArray:
        """How far each source moves the estimate, `(G,)`: its jackknife pseudo-value less the estimate.

        The pseudo-values stand for the sources as independent numbers: their standard error is the jackknife's. There
        have to be two sources.
        """
        sums = np.stack([part.sums - part.mean * part.counts for part in self.clusters])
        counts = np.stack([part.counts for part in self.clusters])
        rest = counts.sum(axis=1, keepdims=True) - counts
        return (self.n_sources - 1) * (np.array(self.signs) @ (sums / rest))

    def replicates(self, rng: np.random.Generator, resamples: int) -> tuple[FloatArray, FloatArray]:
        """Resampled estimates less the estimate, and their jackknife variances: two arrays of shape `(resamples,)`."""
        n = self.n_sources
        centred, counts = self._centred()
        chunk = max(1, _CHUNK_CELLS // n)
        shift, variance = np.empty(resamples), np.empty(resamples)
        for start in range(0, resamples, chunk):
            stop = min(start + chunk, resamples)
            weights = rng.multinomial(n, np.full(n, 1 / n), size=stop - start).astype(np.float64)  # (R, G)
            shift[start:stop], variance[start:stop] = self._resampled(weights, centred, counts)
        return shift, variance

    def _centred(self) -> tuple[FloatArray, FloatArray]:
        """Sums less their expectation under the estimate, and counts: `(K, G)` each. Centring avoids cancellation.

        The sources are sorted by their numbers: they are drawn by position, and the order of rows must not matter.
        """
        counts = np.stack([part.counts for part in self.clusters])
        sums = np.stack([part.sums - part.mean * part.counts for part in self.clusters])
        order = np.lexsort(np.concatenate([sums, counts]))
        return sums[:, order], counts[:, order]

    def _resampled(self, weights: FloatArray, sums: FloatArray, counts: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Signed sum of the weighted means and its jackknife variance, for weights `(R, G)`."""
        shift = np.zeros(len(weights))
        change = np.zeros_like(weights)  # (R, G): how the statistic moves when one draw of a source is left out
        for sign, part_sums, part_counts in zip(self.signs, sums, counts, strict=True):
            total = weights @ part_counts  # (R,)
            mean = (weights @ part_sums) / total
            shift += sign * mean
            rest = total[:, None] - part_counts
            # Where a source was not drawn, `rest` may be zero; its weight is zero too, so it must only stay finite.
            np.copyto(rest, 1.0, where=weights == 0)
            change += sign * (mean[:, None] * part_counts - part_sums) / rest
        n = weights.shape[1]
        return shift, (n - 1) / n * (weights * change**2).sum(axis=1)


def interval(groups: Sequence[Group], *, resamples: int, seed: int) -> tuple[float, float]:
    """The 95% interval that `interval_and_p` gives."""
    return interval_and_p(groups, resamples=resamples, seed=seed)[0]


def interval_and_p(groups: Sequence[Group], *, resamples: int, seed: int) -> tuple[tuple[float, float], float]:
    """95% interval and two-sided p of the sum of the groups' estimates; the groups are resampled independently.

    Args:
        groups (`Sequence[Group]`): Independent groups of sources.
        resamples (`int`): Number of bootstrap resamples.
        seed (`int`): Seed of the NumPy generator: the same seed and data give the same interval, in any order of rows.

    Returns:
        `tuple[tuple[float, float], float]`: The ends of the interval, and the p of a sum of 0; p is below 0.05 exactly
        where the interval leaves 0 out. All are NaN where a group has a single source.

    Raises:
        ValueError: If `resamples` is not positive.
    """
    if resamples < 1:
        raise ValueError(f"resamples: expected a positive number, got {resamples}")
    fewest = min(group.n_sources for group in groups)
    if fewest < 2:
        return (float("nan"), float("nan")), float("nan")
    estimate = sum(group.estimate for group in groups)
    error = float(np.sqrt(sum(group.variance() for group in groups)))
    size = max(float(np.abs(part.source_means).max()) for group in groups for part in group.clusters)
    if error <= 1e-12 * size:  # the sources agree up to rounding
        # No spread, no t: the p is that of all sources having one sign.
        p_value = smallest_p(sum(group.n_sources for group in groups)) if abs(estimate) > 1e-12 * size else 1.0
        return (estimate, estimate), p_value
    shift = variance = np.zeros(0)
    if fewest >= FEWEST_SOURCES:
        rng = np.random.default_rng(seed)
        shift, variance = np.zeros(resamples), np.zeros(resamples)
        for group in groups:
            group_shift, group_variance = group.replicates(rng, resamples)
            shift += group_shift
            variance += group_variance
    critical = critical_value(shift, variance, error, fewest)
    t = studentised(shift, variance, error)
    observed = abs(estimate) / error
    p_value = float((1 + (t >= observed).sum()) / (1 + len(t)))
    if not np.isfinite(_quantile(t)):
        p_value = 2 * float(scipy.stats.t.sf(observed, fewest - 1))
    return (estimate - critical * error, estimate + critical * error), p_value


def smallest_p(n_sources: int) -> float:
    """The smallest two-sided p that sign flips of so many sources can have: all of one sign.

    Example:
        >>> smallest_p(5), smallest_p(6)
        (0.0625, 0.03125)
    """
    return float(2.0 ** (1 - n_sources))


def critical_value(shift: FloatArray, variance: FloatArray, error: float, n_sources: int) -> float:
    """How many standard errors the symmetric bootstrap-t interval reaches to either side.

    Args:
        shift (`np.ndarray` of shape `(resamples,)`): Resampled estimates less the estimate.
        variance (`np.ndarray` of shape `(resamples,)`): Their jackknife variances.
        error (`float`): Standard error of the estimate.
        n_sources (`int`): Sources, for Student's t where resamples do not give a value.
    """
    critical = _quantile(studentised(shift, variance, error))
    return critical if np.isfinite(critical) else float(scipy.stats.t.ppf((1 + LEVEL) / 2, n_sources - 1))


def studentised(shift: FloatArray, variance: FloatArray, error: float) -> FloatArray:
    """`|t*|` of each resample, shape `(resamples,)`; the arguments are those of `critical_value`."""
    spread = np.sqrt(variance) > 1e-9 * error
    t = np.full(len(shift), np.inf)  # a resample without spread says that the estimate may be anywhere
    t[spread] = np.abs(shift[spread]) / np.sqrt(variance[spread])
    return t


def _quantile(t: FloatArray) -> float:
    """The 95% quantile of `|t*|`, infinite where it is unknown; the data count as a resample, as they do in p."""
    rank = math.floor(LEVEL * (len(t) + 1) + 1e-9) + 1
    return float(np.partition(t, rank - 1)[rank - 1]) if rank <= len(t) else math.inf
