"""The distance of a sample from a distribution that is known by its quantiles, as a human profile keeps it."""

import numpy as np
from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import column

_STEPS = 2000


def wasserstein_to_quantiles(values: ArrayLike, levels: ArrayLike, quantiles: ArrayLike) -> float:
    """1-Wasserstein distance of a sample from quantiles: the mean distance of the two quantile functions.

    Between two levels the quantiles are interpolated. Below the lowest and above the highest nothing is known, so the
    shares of both beyond these levels are left out (0.1% at each end with the profiles of this package).

    Args:
        values (`ArrayLike` of shape `(n,)`): The sample.
        levels (`ArrayLike` of shape `(Q,)`): Levels of the quantiles, ascending, in [0, 1].
        quantiles (`ArrayLike` of shape `(Q,)`): The quantiles, never falling, in the unit of the sample.

    Returns:
        `float`: In the unit of the sample.

    Raises:
        ValueError: If there are no values or levels, one is not finite, or levels and quantiles differ in length.

    Example:
        >>> round(wasserstein_to_quantiles([2.0, 3.0, 4.0], [0.0, 0.5, 1.0], [1.0, 2.0, 3.0]), 2)
        1.0
    """
    sample = np.sort(column(values, "values"))
    at, known = column(levels, "levels"), column(quantiles, "quantiles")
    if len(at) != len(known):
        raise ValueError(f"quantiles: {len(known)} values for {len(at)} levels")
    middles = at[0] + (np.arange(_STEPS) + 0.5) / _STEPS * (at[-1] - at[0])
    own = sample[np.minimum((middles * len(sample)).astype(np.intp), len(sample) - 1)]
    return float(np.abs(own - np.interp(middles, at, known)).mean() * (at[-1] - at[0]))
