"""Which of several compromises between two aims are not beaten in both."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ugap.statistics.bootstrap import column


def pareto_optimal(costs: ArrayLike, values: ArrayLike) -> NDArray[np.bool_]:
    """Whether each point is on the Pareto frontier: no other has a lower cost and a value as high, or the reverse.

    Args:
        costs (`ArrayLike` of shape `(n,)`): Numbers that should be low.
        values (`ArrayLike` of shape `(n,)`): Numbers that should be high.

    Returns:
        `np.ndarray` of shape `(n,)`, bool: Points that are equal in both are all on it, or all off it.

    Raises:
        ValueError: If lengths differ, there is no point, or a number is not finite.

    Example:
        >>> pareto_optimal([0.1, 0.2, 0.3], [0.5, 0.7, 0.6]).tolist()
        [True, True, False]
    """
    x, y = column(costs, "costs"), column(values, "values")
    if len(x) != len(y):
        raise ValueError(f"values: {len(y)} values for {len(x)} costs")
    no_worse = (x[:, None] <= x) & (y[:, None] >= y)  # (n, n): the row is no worse than the column
    better = no_worse & ((x[:, None] < x) | (y[:, None] > y))
    return np.asarray(~better.any(axis=0))
