"""The temperature at which a model writes as surprising as people: the cheap answer that others stand beside."""

from collections.abc import Callable

import numpy as np

FIRST = (0.9, 1.0, 1.1)  # where the search looks first
LOWEST, HIGHEST = 0.5, 1.5


def matched_temperature(people: float, level_at: Callable[[float], float]) -> float:
    """The temperature at which the mean surprisal of what is written is that of people, to two steps of interpolation.

    The three first temperatures bracket the answer or point at it; a fourth is tried where a line through the two
    nearest says, and the answer lies between the two nearest then.

    Args:
        people (`float`): Mean surprisal of human text, nats per token.
        level_at (`Callable[[float], float]`): Mean surprisal of what the model writes at a temperature; called four
            times, each on the same prefixes with the same seed.

    Returns:
        `float`: In [0.5, 1.5], to three decimals.

    Example:
        >>> matched_temperature(4.24, lambda temperature: 4 * temperature**2 + 1)
        0.9
    """
    found: dict[float, float] = {}

    def crossing() -> float:
        near = sorted(sorted(found, key=lambda t: abs(found[t] - people))[:2])
        (a, b), (at_a, at_b) = near, (found[near[0]], found[near[1]])
        slope = (at_b - at_a) / (b - a)
        return float(np.clip(a + (people - at_a) / slope, LOWEST, HIGHEST)) if slope > 0 else a

    for temperature in FIRST:
        found[temperature] = level_at(temperature)
    fourth = round(crossing(), 3)
    found[fourth] = level_at(fourth)
    return round(crossing(), 3)
