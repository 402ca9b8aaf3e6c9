"""The temperature at which a model writes as surprising as people: the cheap answer that others stand beside."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

FIRST = (0.9, 1.0, 1.1)  # where the search looks first
LOWEST, HIGHEST = 0.5, 2.0
MOST = 9  # temperatures that are tried
NEAR = 0.05  # nats per token from people's level: the line through the neighbours does the rest


def matched_temperature(people: float, level_at: Callable[[float], float]) -> float:
    """The temperature at which the mean surprisal of what is written is that of people.

    After three temperatures that most models need no more than, each next one is tried where a line through the two
    neighbours of people's level crosses it, until a level within 0.05 nats of people's is found.

    Args:
        people (`float`): Mean surprisal of human text, nats per token.
        level_at (`Callable[[float], float]`): Mean surprisal of what the model writes at a temperature; called from
            four to nine times, each on the same prefixes with the same seed.

    Returns:
        `float`: In [0.5, 2], to three decimals.

    Example:
        >>> matched_temperature(4.24, lambda temperature: 4 * temperature**2 + 1)
        0.9
    """
    found = {temperature: level_at(temperature) for temperature in FIRST}
    while True:
        temperature = _crossing(people, found)
        if temperature in found or len(found) == MOST:
            return temperature
        found[temperature] = level_at(temperature)
        if abs(found[temperature] - people) <= NEAR:
            return _crossing(people, found)


def _crossing(people: float, found: dict[float, float]) -> float:
    """Where the line through two neighbours crosses people's level: those around it, or the nearest to it."""
    tried = sorted(found)
    a, b = next(
        ((a, b) for a, b in pairwise(tried) if (found[a] - people) * (found[b] - people) <= 0),
        tuple(tried[-2:]) if found[tried[-1]] < people else tuple(tried[:2]),
    )
    slope = (found[b] - found[a]) / (b - a)
    if slope <= 0:
        return min(a, b, key=lambda temperature: abs(found[temperature] - people))
    return round(float(np.clip(a + (people - found[a]) / slope, LOWEST, HIGHEST)), 3)
