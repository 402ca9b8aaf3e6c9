"""The setting of a sampler at which a model writes as surprising as people.

Of temperature, it is the answer that every fine-tuning and every other sampler has to beat.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

FIRST = (0.9, 1.0, 1.1)  # temperatures where the search looks first
BOUNDS = (0.5, 2.0)
MOST = 9  # settings that are tried
NEAR = 0.05  # nats per token from the human mean: the line through the neighbours does the rest


def matched_setting(
    people: float,
    surprisal_at: Callable[[float], float],
    *,
    first: Sequence[float] = FIRST,
    bounds: tuple[float, float] = BOUNDS,
) -> float:
    """The setting at which the mean surprisal of a model's texts is that of human text; by default the temperature.

    After the first settings, each next one is tried where a line through the two neighbours of the human mean crosses
    it, until a mean within 0.05 nats of the human one is found.

    Args:
        people (`float`): Mean surprisal of human text, nats per token.
        surprisal_at (`Callable[[float], float]`): Mean surprisal of the model's texts at a setting, rising with it;
            called up to nine times, each on the same prefixes with the same seed.
        first (`Sequence[float]`, *optional*): Where the search looks first: temperatures that most models need.
        bounds (`tuple[float, float]`, *optional*, defaults to `(0.5, 2)`): Bounds of the setting.

    Returns:
        `float`: Within the bounds, to three decimals.

    Example:
        >>> matched_setting(4.24, lambda temperature: 4 * temperature**2 + 1)
        0.9
    """
    tried = {setting: surprisal_at(setting) for setting in first}
    while True:
        setting = _crossing(people, tried, bounds)
        if setting in tried or len(tried) == MOST:
            return setting
        tried[setting] = surprisal_at(setting)
        if abs(tried[setting] - people) <= NEAR:
            return _crossing(people, tried, bounds)


def _crossing(people: float, tried: dict[float, float], bounds: tuple[float, float]) -> float:
    """Where the line through two neighbours crosses the human mean: those around it, or the nearest to it."""
    settings = sorted(tried)
    a, b = next(
        ((a, b) for a, b in pairwise(settings) if (tried[a] - people) * (tried[b] - people) <= 0),
        tuple(settings[-2:]) if tried[settings[-1]] < people else tuple(settings[:2]),
    )
    slope = (tried[b] - tried[a]) / (b - a)
    # Noise of few texts may turn the slope: the line would then lead away from the human mean.
    if slope <= 0:
        return min(a, b, key=lambda setting: abs(tried[setting] - people))
    return round(float(np.clip(a + (people - tried[a]) / slope, *bounds)), 3)
