"""Rank tests on per-source values, a standardised effect size, and Holm's correction (SciPy has none)."""

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import FEWEST_SOURCES, FloatArray


def signed_rank(differences: FloatArray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1 where every difference is zero, NaN with fewer than 5 of them."""
    if len(differences) > 1 and not differences.any():
        return 1.0  # SciPy would drop all zeros and test nothing
    if len(differences) < FEWEST_SOURCES:
        return float("nan")
    return float(scipy.stats.wilcoxon(differences).pvalue)


def rank_sum(a: FloatArray, b: FloatArray) -> float:
    """Two-sided p of the Mann-Whitney U test; NaN with fewer than 5 values on either side."""
    if min(len(a), len(b)) < FEWEST_SOURCES:
        return float("nan")
    return float(scipy.stats.mannwhitneyu(a, b).pvalue)


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
