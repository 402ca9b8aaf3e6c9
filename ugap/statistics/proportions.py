"""Proportions: an interval for one, and the test of two that were counted on the same items."""

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class McNemar:
    """Two ways to do the same items, right or wrong, compared by the items on which they differ.

    Args:
        n (`int`): Items.
        a_only (`int`): Items that `a` alone has right.
        b_only (`int`): Items that `b` alone has right.
        difference (`float`): Share of right items of `a` less that of `b`.
        p_value (`float`): Exact two-sided p; 1 where they differ on no item.
    """

    n: int
    a_only: int
    b_only: int
    difference: float
    p_value: float


def wilson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, "Probable inference, the law of succession").

    Unlike the normal interval it stays within `[0, 1]` and keeps a width where all or no items are right.

    `k` need not be whole: where every item was tried several times, the sum over items of the share of right tries
    counts each item once. The interval is then rather too wide than too narrow, because a mean of several tries varies
    less over items than a single try does. For whole `k` it is that of SciPy.

    Args:
        k (`float`): Right items.
        n (`int`): Items.
        confidence (`float`, *optional*, defaults to `0.95`): Level of the interval.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: If `n` is not positive, `k` lies outside `[0, n]` or `confidence` outside `(0, 1)`.

    Example:
        >>> low, high = wilson(12, 20)
        >>> round(low, 3), round(high, 3)
        (0.387, 0.781)
    """
    if n < 1:
        raise ValueError(f"n: expected a positive number of items, got {n}")
    if not 0 <= k <= n:
        raise ValueError(f"k: expected a number from 0 to {n}, got {k}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence}")
    z = float(scipy.stats.norm.ppf((1 + confidence) / 2))
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    # Rounding alone takes an end off 0 or 1, where no item is right or all are, or almost.
    return (max(centre - half, 0.0) if k > 0 else 0.0), (min(centre + half, 1.0) if k < n else 1.0)


def mcnemar(a_right: ArrayLike, b_right: ArrayLike) -> McNemar:
    """McNemar's exact test of two ways to do the same items (McNemar 1947), each tried once an item.

    Items on which both are right, or both wrong, say nothing about which is better; of the others, half would go to
    each side if neither were. Several tries of an item are not independent: compare their means with
    [`paired_gap`][ugap.statistics.paired_gap] then, the items as sources.

    Args:
        a_right (`ArrayLike` of shape `(n,)`, bool): Whether `a` has each item right.
        b_right (`ArrayLike` of shape `(n,)`, bool): Whether `b` has the same items right.

    Raises:
        ValueError: If the values are not truth values, there are none, or the lengths differ.

    Example:
        >>> mcnemar([True, True, True, False], [False, False, True, False])
        McNemar(n=4, a_only=2, b_only=0, difference=0.5, p_value=0.5)
    """
    a, b = _truth_values(a_right, "a_right"), _truth_values(b_right, "b_right")
    if len(a) != len(b):
        raise ValueError(f"b_right: {len(b)} values for {len(a)} of a_right")
    a_only, b_only = int((a & ~b).sum()), int((b & ~a).sum())
    # SciPy's binomial test refuses zero trials.
    p_value = float(scipy.stats.binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0
    return McNemar(len(a), a_only, b_only, (a_only - b_only) / len(a), p_value)


def _truth_values(values: ArrayLike, name: str) -> NDArray[np.bool_]:
    array = np.asarray(values)
    if array.dtype != np.bool_ or array.ndim != 1:
        raise ValueError(f"{name}: expected a list of truth values, got {array.dtype} of shape {array.shape}")
    if not array.size:
        raise ValueError(f"{name}: no values")
    return array
