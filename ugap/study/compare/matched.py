"""The temperature at which a model writes as surprising as people: the answer that every fine-tuning has to beat."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

FIRST = (0.9, 1.0, 1.1)  # where the search looks first
LOWEST, HIGHEST = 0.5, 2.0
MOST = 9  # temperatures that are tried
NEAR = 0.05  # nats per token from the human mean: the line through the neighbours does the rest


def matched_temperature(people: float, surprisal_at: Callable[[float], float]) -> float:
    """The temperature at which the mean surprisal of a model's texts is that of human text.

    After three temperatures that most models need no more than, each next one is tried where a line through the two
    neighbours of the human mean crosses it, until a mean within 0.05 nats of the human one is found.

    Args:
        people (`float`): Mean surprisal of human text, nats per token.
        surprisal_at (`Callable[[float], float]`): Mean surprisal of the model's texts at a temperature; called from
            four to nine times, each on the same prefixes with the same seed.

    Returns:
        `float`: In [0.5, 2], to three decimals.

    Example:
        >>> matched_temperature(4.24, lambda temperature: 4 * temperature**2 + 1)
        0.9
    """
    tried = {temperature: surprisal_at(temperature) for temperature in FIRST}
    while True:
        temperature = _crossing(people, tried)
        if temperature in tried or len(tried) == MOST:
            return temperature
        tried[temperature] = surprisal_at(temperature)
        if abs(tried[temperature] - people) <= NEAR:
            return _crossing(people, tried)


def _crossing(people: float, tried: dict[float, float]) -> float:
    """Where the line through two neighbours crosses the human mean: those around it, or the nearest to it."""
    temperatures = sorted(tried)
    a, b = next(
        ((a, b) for a, b in pairwise(temperatures) if (tried[a] - people) * (tried[b] - people) <= 0),
        tuple(temperatures[-2:]) if tried[temperatures[-1]] < people else tuple(temperatures[:2]),
    )
    slope = (tried[b] - tried[a]) / (b - a)
    # Noise of few texts may turn the slope: the line would then lead away from the human mean.
    if slope <= 0:
        return min(a, b, key=lambda temperature: abs(tried[temperature] - people))
    return round(float(np.clip(a + (people - tried[a]) / slope, LOWEST, HIGHEST)), 3)
