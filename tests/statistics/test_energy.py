"""The energy distance: its value for known distributions, and that small samples do not bias it."""

import numpy as np
import pytest

from ugap.statistics.energy import energy_distance


def test_two_points_each():
    x, y = np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]])
    # 2 mean(3, 5, 2, 4) - 1 - 2
    assert energy_distance(x, y) == pytest.approx(2 * 3.5 - 1 - 2)
    assert energy_distance(x, y) == energy_distance(y, x)


def test_small_samples_of_one_distribution_have_zero_on_average():
    rng = np.random.default_rng(0)
    found = [energy_distance(rng.standard_normal((5, 3)), rng.standard_normal((7, 3))) for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0, abs=3 * np.std(found) / np.sqrt(2000))


def test_a_shift_of_a_normal_distribution():
    """In one dimension `E|X - Y|` of normals has a closed form."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2000, 1)), rng.standard_normal((2000, 1)) + 1
    # With shift m and deviation s = sqrt(2): s sqrt(2 / pi) exp(-m² / 2 s²) + m (2 Phi(m / s) - 1)
    across = 2 / np.sqrt(np.pi) * np.exp(-1 / 4) + 2 * 0.7602499 - 1
    assert energy_distance(x, y) == pytest.approx(2 * across - 4 / np.sqrt(np.pi), abs=0.03)


def test_a_single_point_has_none():
    assert np.isnan(energy_distance(np.zeros((1, 2)), np.zeros((3, 2))))
