import math

import numpy as np
import pytest

from ugap.statistics import paired_gap
from ugap.statistics.share import folded, share_closed

RNG = np.random.default_rng(0)


def noise(rng, kind, shape):
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "skewed":
        return rng.exponential(size=shape) - 1
    return rng.standard_t(3, shape) / np.sqrt(3)


def simulate(rng, kind, n_sources, ratio, errors=5.0):
    """Gaps before, `errors` standard errors from 0, and after, `ratio` times as large, correlated by source."""
    sources = np.repeat(np.arange(n_sources), np.resize([1, 2, 2, 3], n_sources))
    shared, own = (noise(rng, kind, n_sources)[sources] for _ in range(2))
    before = 0.8 * shared + 0.5 * noise(rng, kind, len(sources))
    after = 0.5 * shared + 0.4 * own + 0.5 * noise(rng, kind, len(sources))
    level = errors * np.sqrt(0.8**2 + 0.5**2 / 2) / np.sqrt(n_sources)
    return before + level, after + ratio * level, sources


def covered(kind, n_sources, ratio, trials, resamples, seed=0):
    """How often the interval holds the true share, and how often there is one."""
    hits, known = 0, 0
    for trial in range(trials):
        before, after, sources = simulate(np.random.default_rng([seed, trial]), kind, n_sources, ratio)
        low, high = share_closed(before, sources, after, sources, resamples=resamples, seed=trial).ci95
        if math.isfinite(low):
            known += 1
            hits += low <= 1 - abs(ratio) <= high
    return hits / known, known / trials


def test_the_share_is_of_the_absolute_gap():
    before, sources = [2.0, 4.0, 3.0], ["a", "b", "c"]
    for after, share in ((1.5, 0.5), (-1.5, 0.5), (0.0, 1.0), (3.0, 0.0), (-3.0, 0.0), (6.0, -1.0)):
        found = share_closed(before, sources, [after] * 3, sources)
        assert (found.before, found.after, found.n_sources) == (3.0, after, 3)
        assert found.share == pytest.approx(share)
        turned = share_closed([-x for x in before], sources, [-after] * 3, sources)
        assert (turned.share, turned.ci95) == (found.share, found.ci95)


def test_the_ends_are_where_the_difference_is_not_told_from_nothing():
    """Fieller's: `after - r before` has an interval that just reaches 0, up to the critical value of another r."""
    rng = np.random.default_rng(1)
    before, after, sources = simulate(rng, "normal", 30, 0.4)
    low, high = share_closed(before, sources, after, sources).ci95
    for end, side in ((1 - low, 1), (1 - high, 0)):
        interval = paired_gap(after, end * before, sources).ci95
        assert abs(interval[side]) < 0.05 * (interval[1] - interval[0])


def test_an_interval_is_folded_where_the_sign_is_not_known():
    assert folded((-0.3, 0.2)) == (0.0, 0.3)
    assert folded((0.1, 0.2)) == (0.1, 0.2)
    assert folded((-0.2, -0.1)) == (0.1, 0.2)
    assert all(math.isnan(end) for end in folded((math.nan, math.nan)))
    before, after, sources = simulate(np.random.default_rng(2), "normal", 30, 0.0)
    assert share_closed(before, sources, after, sources).ci95[1] == 1.0


def test_what_has_no_interval():
    """Nothing to close, or nothing to resample."""
    rng = np.random.default_rng(3)
    around_0 = rng.standard_normal(20)
    found = share_closed(around_0 - around_0.mean() + 0.01, range(20), rng.standard_normal(20), range(20))
    assert math.isfinite(found.share)
    assert all(math.isnan(end) for end in found.ci95)
    one = share_closed([1.0, 2.0], ["a", "a"], [1.0, 0.0], ["a", "a"])
    assert one.share == pytest.approx(2 / 3)
    assert all(math.isnan(end) for end in one.ci95)
    nothing = share_closed([1.0, -1.0], ["a", "b"], [1.0, 1.0], ["a", "b"])
    assert math.isnan(nothing.share)


def test_sources_that_agree_leave_no_doubt():
    found = share_closed([1.0, 2.0, 3.0], "abc", [0.25, 0.5, 0.75], "abc")
    assert found.ci95 == (0.75, 0.75) == (found.share, found.share)


def test_neither_the_order_nor_the_chance_of_the_seed_matters():
    before, after, sources = simulate(np.random.default_rng(4), "skewed", 20, 0.5)
    found = share_closed(before, sources, after, sources, seed=1)
    order = np.random.default_rng(5).permutation(len(sources))
    again = share_closed(before[order], sources[order], after, sources, seed=1)
    assert again.ci95 == pytest.approx(found.ci95, rel=1e-9)
    other = share_closed(before, sources, after, sources, seed=2)
    assert other.ci95 == pytest.approx(found.ci95, abs=0.02)


def test_sides_are_joined_by_source():
    found = share_closed([1.0, 1.0, 9.0], ["a", "b", "only before"], [0.5, 0.5, 7.0], ["b", "a", "only after"])
    assert (found.n_sources, found.share) == (2, 0.5)
    with pytest.raises(ValueError, match="no source is shared"):
        share_closed([1.0], ["a"], [1.0], ["b"])
    with pytest.raises(ValueError, match=r"after: .* not a finite number"):
        share_closed([1.0], ["a"], [math.nan], ["a"])


def test_coverage():
    """Half closed, overshot, and all closed: where the ratio passes through 0 the interval must reach a share of 1."""
    for ratio in (0.5, -0.4, 0.0):
        hits, known = covered("normal", 12, ratio, trials=150, resamples=300)
        assert known > 0.93
        assert hits > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("n_sources", [12, 40])
@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy-tailed"])
def test_the_coverage_in_full(kind, n_sources):
    """`python -m pytest -m slow -s tests/statistics/test_share.py` prints the table."""
    found = {}
    for ratio in (0.0, 0.3, -0.4, 1.0):
        hits, known = covered(kind, n_sources, ratio, trials=1000, resamples=500, seed=1)
        found[ratio] = hits
        assert known > 0.93
    shown = ", ".join(f"{ratio:g}: {hits:.1%}" for ratio, hits in found.items())
    print(f"\n{kind}, {n_sources} sources, coverage by ratio: {shown}")
    assert min(found.values()) > 0.915
    assert max(found.values()) < 0.985
