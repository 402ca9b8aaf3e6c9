"""Rewards of points: what they prefer, to whom the peers' distances go, and the rule for short completions."""

import itertools

import numpy as np
import pytest

from ugap.profile.texts import closeness, squared_distance
from ugap.statistics.energy import energy_distance
from ugap.training.matching import ENERGY_WEIGHT, match, with_length_rule

RNG = np.random.default_rng(7)
PEOPLE = RNG.standard_normal((96, 8))
GROUPS = [i // 4 for i in range(96)]


def test_closeness_is_flat_for_three_people_of_four_and_falls_outside():
    many = RNG.standard_normal((20_000, 8))
    assert (closeness(many) == 1).mean() == pytest.approx(0.75, abs=0.01)
    far = np.array([[3.0] * 8, [6.0] * 8, [np.nan, *[6.0] * 7]])
    expected = [1 / (1 + (9 - 1.2774) / 4), 1 / (1 + (36 - 1.2774) / 4), 1 / (1 + (36 - 1.2910) / 4)]
    np.testing.assert_allclose(closeness(far), expected, rtol=1e-4)
    assert np.isnan(squared_distance(np.full((1, 8), np.nan)))


def test_the_formula():
    """From scratch, for two groups of three, of two features."""
    points = np.full((6, 8), np.nan)
    points[:, [0, 6]] = RNG.standard_normal((6, 2)) * 0.3
    groups = ["a", "a", "a", "b", "b", "b"]
    found = match(points, groups)
    x = points[:, [0, 6]]
    human = np.random.default_rng(0).standard_normal((256, 8))[:, [0, 6]]
    radius = np.sqrt(2 * np.log(2))  # half of chi-squared over two degrees of freedom
    human = human * np.minimum(1, radius / np.linalg.norm(human, axis=1, keepdims=True))
    to_own = [
        np.mean([np.linalg.norm(x[i] - x[j]) for j in range(6) if j != i and groups[j] == groups[i]]) for i in range(6)
    ]
    for i in range(6):
        of_group = np.mean(to_own[:3] if i < 3 else to_own[3:])
        own = of_group + 2 * (to_own[i] - of_group)  # (G - 1) / (G - 2) is 2
        others = [np.linalg.norm(x[i] - x[j]) for j in range(6) if groups[j] != groups[i]]
        peers = (own + np.mean(others)) / 2
        assert found.energy[i] == pytest.approx(peers - np.linalg.norm(x[i] - human, axis=1).mean())
    np.testing.assert_allclose(found.rewards, found.closeness + 0.5 * found.energy)
    assert found.energy_distance == pytest.approx(energy_distance(x, human))


def test_of_a_group_of_two_only_other_prompts_are_peers():
    found = match(PEOPLE[:4], "aabb")
    moved = PEOPLE[:4].copy()
    moved[1] *= 0.1  # the other completion of the first prompt
    assert match(moved, "aabb").energy[0] == found.energy[0]
    assert match(moved, "aabb").energy[2] != found.energy[2]


@pytest.mark.parametrize("groups", ["a", "aa"])
def test_without_peers_there_is_closeness_alone(groups):
    found = match(PEOPLE[: len(groups)], groups)
    np.testing.assert_array_equal(found.rewards, found.closeness)


@pytest.mark.parametrize(
    "other",
    [
        PEOPLE * 0.3,
        PEOPLE * 2.0,
        PEOPLE + 0.7,
        np.repeat(PEOPLE[:1], 96, axis=0),
        np.repeat(PEOPLE[::4], 4, axis=0),  # people, but all completions of a prompt are alike
        np.repeat(PEOPLE[:12], 8, axis=0)[np.arange(96) * 5 % 96],  # the same few texts for all prompts
    ],
    ids=["too narrow", "too wide", "shifted", "one text", "collapsed within prompts", "a few texts"],
)
def test_people_have_more_than_any_other_distribution(other):
    people, found = match(PEOPLE, GROUPS), match(other, GROUPS)
    assert found.rewards.mean() < people.rewards.mean() - 0.02
    assert people.rewards.mean() == pytest.approx(0.9, abs=0.1)


def test_the_gain_of_a_completion_over_its_group_is_that_of_the_whole():
    """Moved toward people, one completion of a collapsed batch gains over its group."""
    collapsed = np.zeros((16, 8))
    collapsed[3] = PEOPLE[0] / np.linalg.norm(PEOPLE[0]) * 2
    found = match(collapsed, [i // 4 for i in range(16)]).rewards
    assert found[3] > found[[0, 1, 2]].max() + 0.3


@pytest.mark.parametrize("n", [3, 4])
def test_an_advantage_over_the_group_is_the_gradient_of_the_energy(n):
    """Over all groups of `n` that a policy of three texts can draw, where the group is the whole batch."""
    texts, p = PEOPLE[:3] / np.linalg.norm(PEOPLE[:3], axis=1, keepdims=True) * 2, np.array([0.5, 0.3, 0.2])
    within = np.linalg.norm(texts[:, None] - texts[None], axis=-1)
    to_human = within.sum(1) / 2 - match(texts, "abc").energy
    # The energy is p' D p / 2 - p' H; its gradient by the logit of the first text:
    value = within @ p - to_human
    expected = p[0] * (value[0] - p @ value)
    found = 0.0
    for drawn in itertools.product(range(3), repeat=n):
        energy = match(texts[list(drawn)], [0] * n).energy
        advantages = (energy - energy.mean()) / (n - 1)
        found += p[list(drawn)].prod() * ((np.array(drawn) == 0) - p[0]) @ advantages
    assert found == pytest.approx(expected)


def test_what_is_no_text_is_not_variety():
    """Far away, energy does not grow: closeness falls, and wins."""
    rows = np.concatenate([PEOPLE[:15], [[50.0] * 8]])
    near, far = match(rows, range(16)), match(np.concatenate([PEOPLE[:15], [[500.0] * 8]]), range(16))
    assert far.energy[-1] == pytest.approx(near.energy[-1])
    assert near.rewards[-1] < near.rewards[:15].min()


def test_rows_without_a_point_are_no_peers():
    rows = np.concatenate([PEOPLE[:8], np.full((1, 8), np.nan)])
    groups = [0, 0, 0, 0, 1, 1, 1, 1, 0]
    found, without = match(rows, groups), match(PEOPLE[:8], groups[:8])
    np.testing.assert_allclose(found.rewards[:8], without.rewards)
    assert np.isnan(found.rewards[8])
    assert np.isnan(match(rows[8:], [0]).energy_distance)


def test_a_short_completion_has_less_than_the_least_of_its_prompt():
    rewards = np.array([0.9, 0.2, np.nan, 0.8, np.nan, np.nan, np.nan])
    shares = np.array([1.0, 1.0, 0.5, 1.0, 0.0, 0.3, np.nan])
    found = with_length_rule(rewards, "aaabbcc", shares)
    np.testing.assert_allclose(found, [0.9, 0.2, -0.3, 0.8, -0.2, -0.5, np.nan])
    np.testing.assert_allclose(with_length_rule(rewards, None, shares), [0.9, 0.2, -0.5, 0.8, -1.0, -0.7, np.nan])
    np.testing.assert_allclose(with_length_rule(rewards[4:6], "bc", shares[4:6]), [-1.0, -0.7])


def test_energy_has_half_the_weight_of_closeness():
    assert ENERGY_WEIGHT == 0.5
