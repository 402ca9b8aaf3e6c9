import math

import numpy as np
import pytest
from scipy import stats

from ugap.statistics import correlation

STRATA = np.array(["a", "b"])[np.arange(60) % 2]


def simulate(rng, n, rho):
    x = rng.standard_normal(n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(n)


def covered(n, rho, method, trials, resamples=300):
    """Of normal values Spearman's correlation is `6 / pi * asin(rho / 2)`."""
    truth = rho if method == "pearson" else 6 / np.pi * np.arcsin(rho / 2)
    hits = 0
    for trial in range(trials):
        x, y = simulate(np.random.default_rng([3, trial]), n, rho)
        low, high = correlation(x, y, method=method, resamples=resamples, seed=trial).ci95
        hits += low <= truth <= high
    return hits / trials


def residuals(values, on):
    design = np.stack([np.ones_like(on), on], axis=1)
    return values - design @ np.linalg.lstsq(design, values, rcond=None)[0]


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_it_is_that_of_scipy(method):
    """With ties: ratings are few numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(40)
    y = np.round(x + rng.standard_normal(40))
    known = stats.spearmanr(x, y) if method == "spearman" else stats.pearsonr(x, y)
    found = correlation(x, y, method=method)
    assert found.r == pytest.approx(known.statistic, abs=1e-12)
    assert (found.n, found.n_strata) == (40, 1)
    assert found.ci95[0] < found.r < found.ci95[1]


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_p_is_near_that_of_scipy(method):
    """Of many texts: with few, the bootstrap's error is a little larger than that of the theory."""
    x, y = simulate(np.random.default_rng(0), 500, 0.1)
    known = stats.spearmanr(x, y) if method == "spearman" else stats.pearsonr(x, y)
    assert correlation(x, y, method=method).p_value == pytest.approx(known.pvalue, rel=0.3)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_a_control_is_that_of_residuals(method):
    rng = np.random.default_rng(1)
    length = rng.integers(1, 9, 50).astype(float)
    x, y = length + rng.standard_normal(50), np.round(length + rng.standard_normal(50))
    rank = stats.rankdata if method == "spearman" else np.asarray
    known = stats.pearsonr(residuals(rank(x), rank(length)), residuals(rank(y), rank(length)))
    found = correlation(x, y, method=method, control=length)
    assert found.r == pytest.approx(known.statistic, abs=1e-12)
    assert abs(found.r) < 0.5 < correlation(x, y, method=method).r
    assert found.ci95[0] < 0 < found.ci95[1]


def test_strata_are_pooled_within():
    """Of values: the correlation of what is left of them without their stratum's mean. Of ranks: the mean of the
    strata's own, where they have one size."""
    rng = np.random.default_rng(2)
    x, y = simulate(rng, 60, 0.5)
    x[STRATA == "a"] += 3
    inner_x, inner_y = (v - np.where(STRATA == "a", v[STRATA == "a"].mean(), v[STRATA == "b"].mean()) for v in (x, y))
    found = correlation(x, y, method="pearson", strata=STRATA)
    assert found.r == pytest.approx(stats.pearsonr(inner_x, inner_y).statistic, abs=1e-12)
    alone = [correlation(x[start::2], y[start::2]).r for start in (0, 1)]
    pooled = correlation(x, y, strata=STRATA)
    assert pooled.r == pytest.approx(np.mean(alone), abs=1e-12)
    assert (pooled.n, pooled.n_strata) == (60, 2)


@pytest.mark.parametrize("method", ["spearman", "pearson"])
def test_what_is_positive_overall_can_be_negative_within(method):
    """Simpson's paradox: one group is higher in both, and within each the two go against each other."""
    rng = np.random.default_rng(3)
    x, y = simulate(rng, 60, -0.7)
    shift = np.where(STRATA == "a", 0.0, 4.0)
    overall = correlation(x + shift, y + shift, method=method)
    within = correlation(x + shift, y + shift, method=method, strata=STRATA)
    assert overall.ci95[0] > 0
    assert within.ci95[1] < 0
    assert within.r == pytest.approx(correlation(x, y, method=method, strata=STRATA).r)


def test_intervals_cover():
    for method in ("spearman", "pearson"):
        for rho in (0.0, 0.5):
            assert 0.9 <= covered(40, rho, method, trials=150) <= 0.99, (method, rho)


@pytest.mark.slow
def test_print_the_coverage():
    """The table of the docstring."""
    for method in ("spearman", "pearson"):
        for n in (20, 60, 240):
            shares = {rho: covered(n, rho, method, trials=1000) for rho in (0.0, 0.4, 0.7)}
            print(f"{method}, {n} texts: " + ", ".join(f"{100 * share:.1f}% at {rho}" for rho, share in shares.items()))
            assert all(0.9 <= share <= 0.985 for share in shares.values())


def test_the_interval_leaves_0_out_where_p_is_small():
    for seed in range(30):
        x, y = simulate(np.random.default_rng(seed), 30, 0.3)
        found = correlation(x, y, resamples=200)
        assert (found.ci95[0] > 0 or found.ci95[1] < 0) == (found.p_value < 0.05)


def test_a_seed_gives_one_interval():
    x, y = simulate(np.random.default_rng(4), 30, 0.3)
    assert correlation(x, y, seed=1) == correlation(x, y, seed=1) != correlation(x, y, seed=2)


def test_what_does_not_vary_has_no_correlation():
    x = np.arange(20.0)
    for found in (correlation(x, np.full(20, 0.1)), correlation(x, x, control=x), correlation([1.0], [2.0])):
        assert math.isnan(found.r)
        assert math.isnan(found.p_value)
    # The same within every stratum, though not over all.
    assert math.isnan(correlation(x, np.repeat([0.1, 0.2], 10), strata=np.repeat([0, 1], 10)).r)
    y = np.sin(x)
    assert correlation(x, y, control=np.full(20, 7.0)).r == correlation(x, y).r


def test_what_is_certain():
    found = correlation(np.arange(9.0), np.arange(9.0) ** 3)
    assert found.r == pytest.approx(1)
    assert found.ci95 == pytest.approx((1, 1))
    assert found.p_value == 0


def test_strata_of_one_text_say_nothing():
    x, y = simulate(np.random.default_rng(5), 20, 0.5)
    found = correlation([*x, 100.0], [*y, -100.0], strata=[*"a" * 20, "alone"])
    assert found == correlation(x, y, strata="a" * 20)


def test_few_texts_have_no_interval():
    found = correlation([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0])
    assert found.r == pytest.approx(0.8)
    assert math.isnan(found.ci95[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": [1.0]}, "y: 1 values for 3 of x"),
        ({"control": [1.0]}, "control: 1 values for 3 of x"),
        ({"strata": "ab"}, "strata: 2 for 3 values"),
        ({"x": [1.0, float("nan"), 2.0]}, "x: the value at position 1"),
        ({"resamples": 1}, "resamples: expected at least 2, got 1"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        correlation(**{"x": [1.0, 2.0, 3.0], "y": [1.0, 2.0, 3.0], **change})
