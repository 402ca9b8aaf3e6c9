import numpy as np
import pytest

from ugap.statistics.pareto import pareto_optimal


def test_against_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        costs, values = rng.integers(0, 5, (2, 12)).astype(float)
        expected = [
            not any((c <= cost and v >= value) and (c < cost or v > value) for c, v in zip(costs, values, strict=True))
            for cost, value in zip(costs, values, strict=True)
        ]
        assert pareto_optimal(costs, values).tolist() == expected
        assert any(expected)


def test_equals_share_their_place():
    assert pareto_optimal([1.0, 1.0, 2.0], [3.0, 3.0, 3.0]).tolist() == [True, True, False]
    assert pareto_optimal([1.0], [1.0]).tolist() == [True]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="values: 2 values for 1 costs"):
        pareto_optimal([1.0], [1.0, 2.0])
