"""Corrections for many tests, and a standardised effect size.

Design choices:

- The tests of a primary measure are corrected together by the step-down max-T of Westfall and Young (1993,
  "Resampling-Based Multiple Testing"). Under the null of a test, what a source adds to the estimate lies as often
  above as below 0, so its sign may be flipped. A source has one sign in all tests: rows that share texts share chance.
- What a source adds is its jackknife pseudo-value, so that a gap, and a contrast of the same or of other sources, are
  tested alike. A contrast of two groups is flipped around the level that both share under the null.
- With `n` sources no flip gives less than `2 / 2**n`. Below 6 sources no test can be significant: it gets NaN, and it
  takes part in no correction.
- Holm's correction is for tests that have no resamples in common; SciPy has none.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike, NDArray

from ugap.statistics.bootstrap import FloatArray, Group, smallest_p

SIGNIFICANT = 0.05  # p below it: the interval of 95% leaves 0 out
_CHUNK_CELLS = 1 << 21  # flips x (sources + tests) held at once: 16 MiB an array


def can_be_significant(n_sources: int) -> bool:
    """Whether so many sources can make a test significant after its correction.

    Example:
        >>> can_be_significant(5), can_be_significant(6)
        (False, True)
    """
    return smallest_p(n_sources) < SIGNIFICANT


def step_down(
    tests: Sequence[Sequence[Group]], p_values: ArrayLike, *, flips: int = 10_000, seed: int = 0
) -> FloatArray:
    """P-values of a family of tests, corrected by step-down max-T with sign flips by source.

    Args:
        tests (`Sequence[Sequence[Group]]`): The groups of sources behind the estimate of each test.
        p_values (`ArrayLike` of shape `(n,)`): Raw p-values; none is corrected to less than itself.
        flips (`int`, *optional*, defaults to `10_000`): Draws of the signs of all sources.
        seed (`int`, *optional*, defaults to `0`): Seed of the signs.

    Returns:
        `np.ndarray` of shape `(n,)`: Corrected p-values in the order given; NaN for a test that cannot be significant.

    Raises:
        ValueError: If there is not one p-value for each test.

    Example:
        >>> from ugap.statistics.gap import gap_groups
        >>> one = gap_groups([0.5, 0.4, 0.6, 0.7, 0.3, 0.5, 0.9, 0.4], range(8))
        >>> step_down([one, one], [0.001, 0.001]).round(2).tolist()
        [0.01, 0.01]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.shape != (len(tests),):
        raise ValueError(f"p_values: an array of shape {p.shape} for {len(tests)} tests")
    adjusted = np.full(len(tests), np.nan)
    tested = [i for i, groups in enumerate(tests) if np.isfinite(p[i]) and can_be_significant(_n_sources(groups))]
    if not tested:
        return adjusted
    observed, flipped = _flipped([tests[i] for i in tested], flips, seed)
    order = np.argsort(-observed, kind="stable")
    # Of a test and all that are less extreme: the hypotheses that are still open when it is reached.
    most = np.maximum.accumulate(flipped[:, order[::-1]], axis=1)[:, ::-1]
    # A hair: of equal sums in another order, each counts as reached.
    reached = (most >= observed[order] * (1 - 1e-9)).sum(axis=0)
    stepped = np.maximum.accumulate((1 + reached) / (1 + flips))
    adjusted[np.array(tested)[order]] = stepped
    return np.fmax(adjusted, np.where(np.isnan(adjusted), np.nan, p))


def false_discovery(tests: Sequence[Sequence[Group]], p_values: ArrayLike) -> FloatArray:
    """P-values of a family of tests, corrected by the method of Benjamini and Hochberg (1995).

    Args:
        tests (`Sequence[Sequence[Group]]`): The groups of sources behind the estimate of each test.
        p_values (`ArrayLike` of shape `(n,)`): Raw p-values.

    Returns:
        `np.ndarray` of shape `(n,)`: Corrected p-values in the order given; NaN for a test that cannot be significant.

    Raises:
        ValueError: If a p-value lies outside `[0, 1]`.
    """
    p = np.asarray(p_values, dtype=np.float64)
    able = np.array([can_be_significant(_n_sources(groups)) for groups in tests], dtype=bool)
    tested = np.isfinite(p) & able
    adjusted = np.full(len(tests), np.nan)
    if tested.any():
        adjusted[tested] = scipy.stats.false_discovery_control(p[tested])
    return adjusted


def _n_sources(groups: Sequence[Group]) -> int:
    return sum(group.n_sources for group in groups)


def _flipped(tests: Sequence[Sequence[Group]], flips: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """`|t|` of each test, `(n,)`, and under each flip of the signs of all sources, `(flips, n)`."""
    sources: set[Hashable] = {source for groups in tests for group in groups for source in group.clusters[0].sources}
    # Sorted, so that a source has the same signs in whichever order the rows come.
    index = {source: place for place, source in enumerate(sorted(sources, key=repr))}
    parts: list[tuple[int, FloatArray, FloatArray]] = []  # test, place of its sources, and what they add
    for number, groups in enumerate(tests):
        for group, added in zip(groups, _added(groups), strict=True):
            places = np.array([index[source] for source in group.clusters[0].sources])
            parts.append((number, places, added))
    n_sources, n_parts = len(index), len(parts)
    # A column holds what the sources add to one group: `signs @ columns` are the flipped sums of all groups.
    columns = np.zeros((n_sources, n_parts))
    for column, (_, places, added) in enumerate(parts):
        columns[places, column] = added
    squares = (columns**2).sum(axis=0)
    counts = np.array([len(places) for _, places, _ in parts], dtype=np.float64)
    of_test = np.zeros((n_parts, len(tests)))
    of_test[np.arange(n_parts), [number for number, _, _ in parts]] = 1.0

    def t(signs: NDArray[np.floating[Any]]) -> FloatArray:
        sums = signs @ columns
        # Flips change no square: the variance of a flipped mean follows from its sum alone.
        variances = np.maximum(squares - sums**2 / counts, 0.0) / (counts * (counts - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.abs((sums / counts) @ of_test) / np.sqrt(variances @ of_test)
        return np.nan_to_num(found, nan=0.0)

    rng = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_CELLS // (n_sources + n_parts))
    found = [
        t(2.0 * rng.integers(0, 2, size=(min(chunk, flips - start), n_sources)) - 1.0)
        for start in range(0, flips, chunk)
    ]
    return t(np.ones((1, n_sources)))[0], np.concatenate(found)


def _added(groups: Sequence[Group]) -> list[FloatArray]:
    """What each source of each group adds to the sum of the estimates, around the null: jackknife pseudo-values."""
    if len(groups) == 1:
        return [groups[0].estimate + groups[0].influence()]
    # Two groups: under the null their levels cancel. The shared level is the mean of both, weighted by their precision.
    first, second = groups
    (low, high), total = (first.variance(), second.variance()), first.estimate + second.estimate
    share = low / (low + high) if low + high else 0.5
    # The first group lies `share` of the difference above the common level, the second the rest of it.
    return [share * total + first.influence(), (1 - share) * total + second.influence()]


def standardised_mean(differences: FloatArray) -> float:
    """Cohen's d_z, the mean of paired differences over their standard deviation.

    0 where every difference is zero; NaN where the differences have no spread otherwise, and for a single difference.
    """
    if len(differences) < 2:
        return float("nan")
    if not differences.any():
        return 0.0
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    return mean / spread if spread > 1e-12 * abs(mean) else float("nan")


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's step-down adjusted p-values (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Args:
        p_values (`ArrayLike` of shape `(n,)`): Raw p-values. NaN stays NaN and does not count as a test.

    Returns:
        `np.ndarray` of shape `(n,)`: Adjusted p-values in the order given; reject where one is at most the level.

    Raises:
        ValueError: If a p-value lies outside `[0, 1]`, or the input is not one-dimensional.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03]).tolist()
        [0.03, 0.06, nan, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1:
        raise ValueError(f"p_values: expected one dimension, got shape {p.shape}")
    tested = np.flatnonzero(~np.isnan(p))
    if ((p[tested] < 0) | (p[tested] > 1)).any():
        raise ValueError("p_values: a p-value lies outside [0, 1]")
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted
