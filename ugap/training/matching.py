"""Rewards of completions that should be distributed as human texts: the arithmetic, on points and numbers alone.

A point is a completion's features, whitened so that human texts have mean 0 and covariance 1
(`ugap.profile.texts.TextReference.whitened`).

- *Closeness* is 1 inside the human region and falls outside. Alone, it is best for a policy that writes one text.
- *Energy* is what a completion adds to the nearness of all completions to people: its mean distance to its peers less
  that to human texts. Its mean is highest where completions are distributed as human texts. No completion is better for
  being average, and one that differs from its peers as people differ gains. This is the gradient of the energy distance
  of Székely and Rizzo, sample by sample.
- *Peers* are completions of other prompts and of the completion's own prompt, half and half: the first alone would let
  the completions of a prompt collapse. An advantage is taken against the mean of a group, which shares the distances
  within it: of `G` completions, each gets back `(G - 2) / (G - 1)` of what it adds. So what a completion differs from
  its own group's mean distance is stretched by the inverse; a group of two has no own peers.
- *A short completion* gets less than every whole one of its group, so stopping early cannot pay.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ugap.profile.plain import FloatArray
from ugap.profile.texts import FEATURES, chi_squared_quantile, closeness
from ugap.statistics.energy import distances, energy_distance

ENERGY_WEIGHT = 0.5
WHOLE = 0.9  # share of the nominal length from which a completion counts as whole
_WITHIN = 0.5  # share of human texts inside the radius beyond which distances do not grow
_N_HUMAN = 256
_HUMAN = np.random.default_rng(0).standard_normal((_N_HUMAN, len(FEATURES)))


@dataclass(frozen=True, eq=False)
class Matched:
    """How completions match human texts to one scorer; NaN for those that are not whole.

    Args:
        closeness (`np.ndarray` of shape `(n,)`): In [0, 1].
        energy (`np.ndarray` of shape `(n,)`): 0 on average where completions are as human texts.
        energy_distance (`float`): Of the completions from human texts, without bias: 0 where they are alike. NaN for
            fewer than two completions.
    """

    closeness: FloatArray
    energy: FloatArray
    energy_distance: float

    @property
    def rewards(self) -> FloatArray:
        """Closeness and energy together: shape `(n,)`."""
        return self.closeness + ENERGY_WEIGHT * self.energy


def match(points: FloatArray, groups: Sequence[Hashable]) -> Matched:
    """Compare completions with human texts, one by one and all together.

    Args:
        points (`np.ndarray` of shape `(n, 8)`): Whitened features; rows of NaN are no peers. A coordinate that is NaN
            in all other rows is left out.
        groups (`Sequence[Hashable]` of length `n`): The prompt of each.

    Example:
        >>> people = np.random.default_rng(1).standard_normal((64, 8))
        >>> alike, same = match(people, range(64)), match(people * 0, range(64))
        >>> bool(same.closeness.mean() > alike.closeness.mean()), bool(same.rewards.mean() < alike.rewards.mean())
        (True, True)
    """
    n = len(points)
    known = np.isfinite(points).any(0)
    # A row that lacks a feature which others have cannot be compared with them.
    kept = np.flatnonzero(np.isfinite(points[:, known]).all(1))
    inside = points[kept][:, known]
    out = np.full((2, n), np.nan)
    if not inside.size:
        return Matched(out[0], out[1], math.nan)
    out[0, kept] = closeness(inside)
    radius = math.sqrt(float(chi_squared_quantile(_WITHIN, inside.shape[1])))
    clipped, human = _within(inside, radius), _within(_HUMAN[:, known], radius)
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    group = np.array([numbers[one] for one in groups])[kept]
    out[1, kept] = _to_peers(clipped, group) - distances(clipped, human).mean(1)
    out[1, kept[~_has_peers(group)]] = 0
    return Matched(out[0], out[1], energy_distance(clipped, human))


def with_length_rule(rewards: FloatArray, groups: Sequence[Hashable] | None, shares: FloatArray) -> FloatArray:
    """Rewards `(n,)` in which a short completion has less than every whole one of its prompt.

    `min(rewards of the whole ones) - (1 - share)`: of the prompt, else of all prompts, else 0.

    Args:
        rewards (`np.ndarray` of shape `(n,)`): Rewards of whole completions; NaN for others.
        groups (`Sequence[Hashable]` of length `n`, *optional*): The prompt of each; without, the least reward is 0.
        shares (`np.ndarray` of shape `(n,)`): Length over nominal length. NaN gives NaN.

    Example:
        >>> with_length_rule(np.array([0.9, 0.7, np.nan]), "aaa", np.array([1.0, 1.0, 0.25])).round(2).tolist()
        [0.9, 0.7, -0.05]
    """
    lowest: dict[Hashable, float] = {}
    if groups is None:
        return np.where(np.isfinite(rewards), rewards, np.minimum(shares, 1) - 1)
    for group, reward in zip(groups, rewards, strict=True):
        if math.isfinite(reward):
            lowest[group] = min(reward, lowest.get(group, math.inf))
    otherwise = min(lowest.values(), default=0.0)
    floor = np.array([lowest.get(group, otherwise) for group in groups])
    return np.where(np.isfinite(rewards), rewards, floor - (1 - np.minimum(shares, 1)))


def _to_peers(points: FloatArray, group: np.ndarray) -> FloatArray:
    """Mean distance `(n,)` of each point to its peers; 0 without peers."""
    between = distances(points, points)
    same = group[:, None] == group
    n_own, n_others = same.sum(1) - 1, (~same).sum(1)
    own = (between * same).sum(1) / np.maximum(n_own, 1)
    of_group = (same @ own) / same.sum(1)
    own += (own - of_group) / np.maximum(n_own - 1, 1)
    others = (between * ~same).sum(1) / np.maximum(n_others, 1)
    weights = np.stack([n_own > 1, n_others > 0]).astype(float)
    return np.asarray((weights * [own, others]).sum(0) / np.maximum(weights.sum(0), 1))


def _has_peers(group: np.ndarray) -> np.ndarray:
    same = (group[:, None] == group).sum(1)
    return np.asarray((same > 2) | (same < len(group)))


def _within(points: FloatArray, radius: float) -> FloatArray:
    """Points no farther from 0 than `radius`: a completion that is no text must not count as variety."""
    size = np.linalg.norm(points, axis=1, keepdims=True)
    return np.asarray(points * np.minimum(1, radius / np.maximum(size, radius)))
