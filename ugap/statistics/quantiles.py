"""The distance of a sample from a distribution that is known by its quantiles, as a human profile keeps it."""

import numpy as np
from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import column

_STEPS = 2000


def wasserstein_to_quantiles(values: ArrayLike, levels: ArrayLike, quantiles: ArrayLike) -> float:
    """1-Wasserstein distance of a sample from quantiles: the mean distance of the two quantile functions.

    Quantiles between two levels are interpolated. Nothing is known below the lowest level and above the highest: the
    shares beyond these levels are left out, 0.1% at each end with the profiles of this package.

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
    probabilities, target_quantiles = column(levels, "levels"), column(quantiles, "quantiles")
    if len(probabilities) != len(target_quantiles):
        raise ValueError(f"quantiles: {len(target_quantiles)} values for {len(probabilities)} levels")
    covered = probabilities[-1] - probabilities[0]
    middles = probabilities[0] + (np.arange(_STEPS) + 0.5) / _STEPS * covered
    sample_quantiles = sample[np.minimum((middles * len(sample)).astype(np.intp), len(sample) - 1)]
    # The mean over the covered probabilities, times their share, is the integral over them.
    distance = np.abs(sample_quantiles - np.interp(middles, probabilities, target_quantiles)).mean()
    return float(distance * covered)
