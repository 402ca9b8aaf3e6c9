import math

import numpy as np
import pytest
from scipy import stats

from ugap.statistics import wilson
from ugap.statistics.auc import auc


def simulate(rng, n_sources, distance):
    """Scores of two texts of each kind a source, which share something; and the true AUC."""
    sources = np.repeat(np.arange(n_sources), 2)
    shared = 0.7 * rng.standard_normal(n_sources)[sources]
    higher, lower = (shared + rng.standard_normal(2 * n_sources) for _ in range(2))
    return higher + distance, lower, sources, float(stats.norm.cdf(distance / np.sqrt(2 * (0.7**2 + 1))))


def covered(n_sources, distance, trials, resamples=300):
    hits = 0
    for trial in range(trials):
        higher, lower, sources, truth = simulate(np.random.default_rng([7, trial]), n_sources, distance)
        low, high = auc(higher, sources, lower, sources, resamples=resamples, seed=trial).ci95
        hits += low <= truth <= high
    return hits / trials


def test_it_is_the_u_statistic():
    rng = np.random.default_rng(0)
    higher, lower = rng.integers(0, 6, 23).astype(float), rng.integers(0, 5, 31).astype(float)  # with ties
    found = auc(higher, range(23), lower, range(31))
    assert found.auc == pytest.approx(stats.mannwhitneyu(higher, lower).statistic / (23 * 31))
    assert (found.n, found.n_sources) == ((23, 31), 31)
    assert auc(lower, range(31), higher, range(23)).auc == pytest.approx(1 - found.auc)


def test_the_interval_is_about_sources():
    """A source of four equal texts says no more than one of one text."""
    rng = np.random.default_rng(1)
    higher, lower = rng.standard_normal(15) + 1, rng.standard_normal(15)
    once = auc(higher, range(15), lower, range(15))
    often = auc(np.repeat(higher, 4), np.repeat(range(15), 4), np.repeat(lower, 4), np.repeat(range(15), 4))
    assert often.auc == pytest.approx(once.auc)
    assert often.ci95 == pytest.approx(once.ci95)
    alone = auc(np.repeat(higher, 4), range(60), np.repeat(lower, 4), range(60))
    assert alone.ci95[1] - alone.ci95[0] < 0.7 * (once.ci95[1] - once.ci95[0])


def test_the_jackknife_is_that_of_its_definition():
    """With four sources the interval is Student's: the AUC without each source in turn gives the error."""
    higher, lower, sources = (
        np.array([3.0, 1.0, 4.0, 2.5, 6.0]),
        np.array([2.0, 0.0, 3.5, 1.5, 1.0]),
        np.array([0, 1, 2, 3, 3]),
    )
    found = auc(higher, sources, lower, sources)
    without = [
        auc(higher[sources != s], sources[sources != s], lower[sources != s], sources[sources != s]).auc
        for s in range(4)
    ]
    error = math.sqrt(3 / 4 * sum((value - found.auc) ** 2 for value in without))
    half = stats.t.ppf(0.975, 3) * error
    assert found.ci95 == pytest.approx((max(found.auc - half, 0), min(found.auc + half, 1)))


def test_perfect_is_not_certain():
    found = auc([3.0, 4.0, 5.0] * 4, range(12), [0.0, 1.0, 2.0] * 4, range(12))
    assert (found.auc, found.ci95) == (1.0, wilson(12, 12))
    turned = auc([0.0, 1.0, 2.0] * 4, range(12), [3.0, 4.0, 5.0] * 4, range(12))
    assert (turned.auc, turned.ci95) == (0.0, wilson(0, 12))
    assert all(math.isnan(end) for end in auc([1.0], ["a"], [0.0], ["a"]).ci95)


def test_sources_may_be_of_one_kind_alone():
    """Resamples without a text of one kind say nothing, and are left out."""
    found = auc([1.0, 2.0, 3.0], ["a", "b", "c"], [0.5, 2.5, 1.5], ["d", "e", "f"])
    assert 0 <= found.ci95[0] < found.auc < found.ci95[1] <= 1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="sources_lower: 1 sources for 2 values"):
        auc([1.0], ["a"], [1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="higher: no values"):
        auc([], [], [1.0], ["a"])
    with pytest.raises(ValueError, match=r"lower: .* not a finite number"):
        auc([1.0], ["a"], [math.nan], ["a"])
    with pytest.raises(ValueError, match="resamples"):
        auc([1.0], ["a"], [1.0], ["a"], resamples=0)


def test_coverage():
    assert covered(12, 1.2, trials=200) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n_sources", [8, 23, 46])
def test_the_coverage_in_full(n_sources):
    """`python -m pytest -m slow -s tests/statistics/test_auc.py` prints the table."""
    found = {distance: covered(n_sources, distance, trials=1000, resamples=500) for distance in (0.0, 1.2, 2.3, 3.5)}
    print(f"\n{n_sources} sources, coverage by distance: {found}")
    assert min(found.values()) > 0.88
    assert max(found.values()) < 0.985
