import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from ugap.statistics.quantiles import wasserstein_to_quantiles

LEVELS = np.array([0.001, 0.005, *(i / 100 for i in range(1, 100)), 0.995, 0.999])


def test_it_is_the_distance_of_samples():
    rng = np.random.default_rng(0)
    people, sample = rng.gamma(2.0, 1.5, 20_000), 1.3 * rng.gamma(2.0, 1.2, 900)
    found = wasserstein_to_quantiles(sample, LEVELS, np.quantile(people, LEVELS))
    # Of all tokens: the outermost 0.1% at each end are known to the samples alone.
    assert found == pytest.approx(wasserstein_distance(people, sample), abs=0.03)
    own = wasserstein_to_quantiles(people, LEVELS, np.quantile(people, LEVELS))
    assert own < 0.005
    shifted = wasserstein_to_quantiles(people + 1, LEVELS, np.quantile(people, LEVELS))
    assert shifted == pytest.approx(LEVELS[-1] - LEVELS[0], abs=0.005)


def test_the_order_of_the_sample_does_not_matter():
    values = np.random.default_rng(1).standard_normal(50)
    args = ([0.1, 0.5, 0.9], [-1.0, 0.0, 1.0])
    assert wasserstein_to_quantiles(values, *args) == wasserstein_to_quantiles(values[::-1], *args)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="quantiles: 1 values for 2 levels"):
        wasserstein_to_quantiles([1.0], [0.1, 0.9], [1.0])
    with pytest.raises(ValueError, match="values: no values"):
        wasserstein_to_quantiles([], [0.1, 0.9], [1.0, 2.0])
