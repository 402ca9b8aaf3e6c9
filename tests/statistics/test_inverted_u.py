import math

import numpy as np
import pytest

from ugap.statistics import inverted_u

PEAK = 0.4


def simulate(seed, curve, n=240, noise=1.0):
    rng = np.random.default_rng([5, seed])
    x = np.clip(rng.standard_normal(n), -3, 3)
    return x, curve(x) + noise * rng.standard_normal(n)


def hill(x):
    return -((x - PEAK) ** 2)


CURVES = {
    "rising": lambda x: x,
    "falling": lambda x: -x,
    "flattening": lambda x: 1.5 * np.log(x + 3.2),
    "a ceiling": lambda x: np.minimum(x, 0.5),
    "steep, then flat": lambda x: -np.exp(-x),
    "nothing": lambda x: 0 * x,
    "a U": lambda x: (x - PEAK) ** 2,
}


def test_a_planted_one_is_found_with_its_peak():
    held = 0
    for seed in range(40):
        found = inverted_u(*simulate(seed, hill), resamples=300)
        assert found.found
        assert found.peak == pytest.approx(PEAK, abs=0.3)
        assert found.quadratic.ci95[1] < 0 < found.below.ci95[0]
        assert found.above.ci95[1] < 0
        held += found.peak_ci95[0] <= PEAK <= found.peak_ci95[1]
    assert held >= 34


@pytest.mark.parametrize("name", CURVES)
def test_nothing_else_is_called_one(name):
    found = [inverted_u(*simulate(seed, CURVES[name]), resamples=300) for seed in range(40)]
    assert sum(one.found for one in found) <= 1
    if name in ("a ceiling", "steep, then flat"):  # the quadratic term alone would be fooled
        assert sum(one.quadratic.sign < 0 for one in found) >= 36
    if name == "a U":
        assert all(one.quadratic.sign > 0 and math.isnan(one.peak) for one in found)


def test_the_quadratic_is_that_of_least_squares():
    x, y = simulate(1, hill)
    groups = np.arange(240) % 3
    length = np.random.default_rng(0).standard_normal(240)
    found = inverted_u(x, y, strata=groups, control=length)
    z = (x - x.mean()) / x.std()
    design = np.stack([z, z**2, length, *(groups == g for g in range(3))], axis=1)
    linear, quadratic, *_ = np.linalg.lstsq(design, y / y.std(), rcond=None)[0]
    assert found.quadratic.value == pytest.approx(quadratic)
    assert found.peak == pytest.approx(x.mean() - x.std() * linear / (2 * quadratic))
    over = z >= -linear / (2 * quadratic)
    from_peak = z + linear / (2 * quadratic)
    lines = np.stack([from_peak * ~over, from_peak * over, over, length, *(groups == g for g in range(3))], axis=1)
    below, above, *_ = np.linalg.lstsq(lines, y / y.std(), rcond=None)[0]
    assert found.below.value == pytest.approx(below)
    assert found.above.value == pytest.approx(above)


def test_a_group_that_is_higher_makes_no_peak():
    """One group in the middle is rated higher: a hill over all, nothing within."""
    rng = np.random.default_rng(6)
    group = np.arange(240) % 3
    x = group + 0.3 * rng.standard_normal(240)
    y = 3.0 * (group == 1) + rng.standard_normal(240)
    assert inverted_u(x, y).found
    assert not inverted_u(x, y, strata=group).found


def test_a_scale_and_a_shift_change_the_peak_alone():
    x, y = simulate(2, hill)
    once, moved = inverted_u(x, y), inverted_u(1000 * x + 7, 0.01 * y - 3)
    assert moved.quadratic.value == pytest.approx(once.quadratic.value)
    assert moved.quadratic.ci95 == pytest.approx(once.quadratic.ci95)
    assert moved.peak == pytest.approx(1000 * once.peak + 7)
    assert moved.peak_ci95 == pytest.approx([1000 * end + 7 for end in once.peak_ci95])


def test_a_peak_at_the_edge_has_no_lines():
    x, y = simulate(3, lambda x: -((x - 2) ** 2), noise=0.3)
    found = inverted_u(x, y)
    assert found.quadratic.sign < 0
    assert found.peak == pytest.approx(2, abs=0.2)
    assert math.isnan(found.below.value)
    assert not found.found


def test_what_cannot_be_told():
    x = np.arange(20.0)
    for found in (
        inverted_u(x, np.full(20, 3.0)),
        inverted_u(np.arange(20.0) % 2, np.sin(x)),  # of two values a square is nothing new
        inverted_u(x[:4], np.sin(x[:4])),
        inverted_u(x, np.sin(x), strata=range(20)),
    ):
        assert math.isnan(found.quadratic.value)
        assert not found.found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [1.0]}, "y: 1 values for 3 of x"),
        ({"control": [1.0]}, "control: 1 values for 3 of x"),
        ({"strata": "ab"}, "strata: 2 for 3 values"),
        ({"resamples": 1}, "resamples: expected at least 2, got 1"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        inverted_u(**{"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], **change})
