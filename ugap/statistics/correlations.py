"""Correlations within strata, with a control, and their bootstrap intervals.

Design choices:

- Texts are compared only with texts of their own stratum (their author group, their prompt): values, for Pearson's, and
  ranks, for Spearman's, are centred within the stratum and pooled. A correlation that comes from differences between
  groups alone is then 0; one that is the other way round within them shows (Simpson's paradox).
- Ranks are taken within the stratum and divided by its size, so that strata of all sizes count by their texts; ties
  have their mean rank.
- A control is partialled out of both: `(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))`, of ranks for Spearman's.
- The interval resamples texts within their strata and ranks them anew. It is Student's, with the bootstrap's standard
  error of Fisher's `atanh r`. The p-value is that of the same statistic: below 0.05 where the interval leaves 0 out.
- A resample is a column of weights, how often each text was drawn: sums are matrix products, ranks are cumulative sums.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike, NDArray

from ugap.statistics.bootstrap import LEVEL, FloatArray, Sources, column

FEWEST_FREEDOM = 3  # below it no interval says anything
_NONE = (math.nan, math.nan)
_SPREAD = 1e-12  # what is left, by rounding, of the share of a variance that a control explains whole


@dataclass(frozen=True)
class Correlation:
    """A correlation and its interval.

    Args:
        n (`int`): Texts in strata of at least two.
        n_strata (`int`): Those strata.
        r (`float`): In [-1, 1]; NaN where one side does not vary within the strata, or nothing is left of it by the
            control.
        ci95 (`tuple[float, float]`): 95% interval; NaN with fewer than 3 degrees of freedom, which are the texts less
            their strata, less 1, and less 1 for a control.
        p_value (`float`): Two-sided p of no correlation; NaN as the interval.
    """

    n: int
    n_strata: int
    r: float
    ci95: tuple[float, float]
    p_value: float


def correlation(
    x: ArrayLike,
    y: ArrayLike,
    *,
    method: Literal["spearman", "pearson"] = "spearman",
    strata: Sources | None = None,
    control: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Correlation:
    """Correlate two numbers of texts, within strata and with a control where they are given.

    With 60 and 240 texts, and true correlations of 0, 0.4 and 0.7 between normal values, the interval covers the true
    one in 93.6 to 96.4% of 1,000 simulated data sets each; with 20 texts in 94.1 to 97.3%. The table is printed by
    `python -m pytest -m slow -s tests/statistics/test_correlation.py`.

    Args:
        x (`ArrayLike` of shape `(n,)`): One number of every text.
        y (`ArrayLike` of shape `(n,)`): The other.
        method (`str`, *optional*, defaults to `"spearman"`): Of ranks, or `"pearson"`, of values.
        strata (`Sequence[Hashable]` of length `n`, *optional*): What every text is compared within.
        control (`ArrayLike` of shape `(n,)`, *optional*): What is partialled out of both, such as the length.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Raises:
        ValueError: If lengths differ, there is no text, a value is not finite, or `resamples` is below 2.

    Example:
        Within both groups the correlation is negative, over both it is positive.

        >>> x, y = [1.0, 2.0, 3.0, 11.0, 12.0, 13.0], [3.0, 2.0, 1.0, 13.0, 12.0, 11.0]
        >>> round(correlation(x, y).r, 2), correlation(x, y, strata="aaabbb").r
        (0.54, -1.0)
    """
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    named = [("x", x), ("y", y), *([] if control is None else [("control", control)])]
    columns = np.stack([_fitting(values, name, x) for name, values in named])  # (2 or 3, n)
    groups = strata_of(strata, columns.shape[1])
    n, n_strata = sum(map(len, groups)), len(groups)
    # A column that is constant within every stratum has no correlation, and as a control it explains nothing.
    varies = [any(np.ptp(row[group]) for group in groups) for row in columns]
    if not all(varies[:2]):
        return Correlation(n, n_strata, math.nan, _NONE, math.nan)
    by_stratum = [columns[varies][:, group] for group in groups]
    r = float(_pooled(by_stratum, [np.ones((len(group), 1)) for group in groups], method)[0])
    freedom = n - n_strata - len(columns) + 1
    if not math.isfinite(r) or freedom < FEWEST_FREEDOM:
        return Correlation(n, n_strata, r, _NONE, math.nan)
    limit = 1 - _SPREAD
    if abs(r) > limit:
        return Correlation(n, n_strata, r, (r, r), 0.0)
    drawn = _pooled(by_stratum, draw(groups, resamples, seed), method)
    # Fisher's z has nearly the same spread for every r, so one standard error serves both ends.
    error = float(np.std(np.arctanh(np.clip(drawn[np.isfinite(drawn)], -limit, limit)), ddof=1))
    fisher_z, critical = math.atanh(r), float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom))
    ends = math.tanh(fisher_z - critical * error), math.tanh(fisher_z + critical * error)
    return Correlation(n, n_strata, r, ends, float(2 * scipy.stats.t.sf(abs(fisher_z) / error, freedom)))


def strata_of(strata: Sources | None, n: int) -> list[NDArray[np.intp]]:
    """The positions of the texts of every stratum that has at least two; all of them are one where there are none.

    Raises:
        ValueError: If there are not `n` strata.
    """
    if strata is None:
        return [np.arange(n)] if n > 1 else []
    if len(strata) != n:
        raise ValueError(f"strata: {len(strata)} for {n} values")
    index: dict[Hashable, list[int]] = {}
    for row, name in enumerate(strata):
        index.setdefault(name, []).append(row)
    return [np.array(rows) for rows in index.values() if len(rows) > 1]


def draw(groups: list[NDArray[np.intp]], resamples: int, seed: int) -> list[FloatArray]:
    """How often each text is drawn, for every stratum an array of shape `(its texts, resamples)`."""
    return _draw(tuple(map(len, groups)), resamples, seed)


@lru_cache(maxsize=4)  # many numbers of the same texts are related one after another
def _draw(sizes: tuple[int, ...], resamples: int, seed: int) -> list[FloatArray]:
    rng = np.random.default_rng(seed)
    drawn = [rng.multinomial(n, np.full(n, 1 / n), size=resamples).T.astype(np.float64) for n in sizes]
    for weights in drawn:
        weights.setflags(write=False)  # the cache hands out the same arrays again
    return drawn


def _fitting(values: ArrayLike, name: str, like: ArrayLike) -> FloatArray:
    array = column(values, name)
    if len(array) != np.size(np.asarray(like)):
        raise ValueError(f"{name}: {len(array)} values for {np.size(np.asarray(like))} of x")
    return array


def _pooled(columns: list[FloatArray], weights: list[FloatArray], method: str) -> FloatArray:
    """The correlation in every resample, `(R,)`, of the columns `(K, n)` of every stratum with its weights `(n, R)`."""
    k = len(columns[0])
    products = np.zeros((weights[0].shape[1], k, k))
    for values, drawn in zip(columns, weights, strict=True):
        centred = [_ranks(row, drawn) if method == "spearman" else _centred(row, drawn) for row in values]
        for i in range(k):
            weighted = drawn * centred[i]
            for j in range(i, k):  # the upper half alone: the lower is never read
                products[:, i, j] += np.einsum("nr,nr->r", weighted, centred[j])
    scale = np.sqrt(np.einsum("rii->ri", products))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample in which a side does not vary has none
        r = products / (scale[:, :, None] * scale[:, None, :])
        if k == 2:
            return r[:, 0, 1]
        left = (1 - r[:, 0, 2] ** 2) * (1 - r[:, 1, 2] ** 2)
        return np.where(left > _SPREAD, (r[:, 0, 1] - r[:, 0, 2] * r[:, 1, 2]) / np.sqrt(left), np.nan)


def _centred(values: FloatArray, drawn: FloatArray) -> FloatArray:
    return values[:, None] - values @ drawn / drawn.sum(axis=0)


def _ranks(values: FloatArray, drawn: FloatArray) -> FloatArray:
    """Mean ranks over the number of texts, less their mean: the middle of what is drawn at a value and below it."""
    order = np.argsort(values, kind="stable")
    up_to = np.concatenate([np.zeros((1, drawn.shape[1])), np.cumsum(drawn[order], axis=0)])
    first, last = (np.searchsorted(values[order], values, side) for side in ("left", "right"))
    return (up_to[first] + up_to[last]) / (2 * up_to[-1]) - 0.5
