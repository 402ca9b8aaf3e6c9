import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ugap.statistics import can_be_significant, false_discovery, holm, step_down
from ugap.statistics.bootstrap import smallest_p
from ugap.statistics.contrast import independent_groups
from ugap.statistics.gap import gap_groups
from ugap.statistics.significance import standardised_mean

pytestmark = pytest.mark.filterwarnings("error")


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last rises to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.5, 0.6]).tolist() == [1, 1, 1]
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_holm_leaves_nan_out_of_the_count():
    nan = float("nan")
    np.testing.assert_allclose(holm([nan, 0.01, nan, 0.04]), [nan, 0.02, nan, 0.04])
    assert np.isnan(holm([nan, nan])).all()


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    p, adjusted = np.array(p_values), holm(p_values)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-15).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("bad", [[0.5, 1.5], [-0.1], [[0.5]]])
def test_holm_refuses_what_is_no_list_of_p_values(bad):
    with pytest.raises(ValueError, match="p_values"):
        holm(bad)


def gaps_of(rng, n_sources, n_tests=1, mean=0.0):
    """Tests on the same sources of three prefixes, which share half of their noise."""
    sources = np.repeat(np.arange(n_sources), 3)
    shared = rng.standard_normal(n_sources)[sources]
    return [gap_groups(mean + shared + rng.standard_normal(len(sources)), sources) for _ in range(n_tests)]


def test_sign_flips_by_hand():
    """One test of eight sources: all 2^8 flips, with Student's t of what is flipped."""
    x = np.array([0.9, 0.4, -0.2, 1.1, 0.3, 0.8, -0.1, 0.6])
    t = [abs(stats.ttest_1samp(x * signs, 0).statistic) for signs in itertools.product((1, -1), repeat=8)]
    exact = np.mean(np.array(t) >= t[0] * (1 - 1e-9))
    (found,) = step_down([gap_groups(x, range(8))], [0.0], flips=50_000)
    assert found == pytest.approx(exact, rel=0.1)


def test_a_family_is_corrected_by_the_largest_that_is_still_open():
    """By hand, on the same flips: the most extreme test against all, the next against the others."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 12)) + np.array([[1.2], [0.7], [0.0]])
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    t = np.abs([stats.ttest_1samp(row * signs, 0, axis=1).statistic for row in x])
    observed, first, second, third = t[:, 0], *np.argsort(-t[:, 0])
    steps = [(t.max(axis=0) >= observed[first] - 1e-9).mean()]
    steps.append(max(steps[-1], (t[[second, third]].max(axis=0) >= observed[second] - 1e-9).mean()))
    steps.append(max(steps[-1], (t[third] >= observed[third] - 1e-9).mean()))
    found = step_down([gap_groups(row, range(12)) for row in x], np.zeros(3), flips=40_000)
    assert found[[first, second, third]] == pytest.approx(steps, rel=0.1, abs=1e-3)
    assert (step_down([gap_groups(row, range(12)) for row in x], [0.3, 0.4, 1.0]) >= [0.3, 0.4, 1.0]).all()


def test_rows_that_say_the_same_cost_nothing():
    """Surprisal and perplexity are one hypothesis; Holm would count it twice."""
    (one,) = gaps_of(np.random.default_rng(2), 14, mean=0.8)
    alone = step_down([one], [0.0])
    assert step_down([one] * 9, np.zeros(9)) == pytest.approx(np.repeat(alone, 9))


def test_ten_sources_can_be_significant_over_many_rows():
    tests = gaps_of(np.random.default_rng(3), 10, 49, mean=2.0)
    assert 49 * smallest_p(10) < 0.1  # to Holm, over any test of signs or ranks: not below 0.05
    assert 49 * smallest_p(10) > 0.05
    assert (step_down(tests, np.zeros(49)) < 0.05).mean() > 0.8


def test_too_few_sources_take_part_in_no_correction():
    rng = np.random.default_rng(4)
    enough, few = gaps_of(rng, 12, mean=1.0)[0], gaps_of(rng, 5, mean=3.0)[0]
    assert [can_be_significant(n) for n in (1, 5, 6)] == [False, False, True]
    for correct in (step_down, false_discovery):
        (alone,) = correct([enough], [0.01])
        found = correct([few, enough, few], [0.001, 0.01, float("nan")])
        assert np.isnan(found[[0, 2]]).all()
        assert found[1] == alone
        assert correct([], []).shape == (0,)
    assert np.isnan(step_down([few], [0.001])).all()


def test_the_order_of_the_tests_does_not_matter():
    rng = np.random.default_rng(5)
    tests = [*gaps_of(rng, 12, 3, mean=0.6), independent_groups(*side(rng, "a", 0.9), *side(rng, "b", 0.0))]
    found = step_down(tests, np.zeros(4), flips=500)
    np.testing.assert_array_equal(step_down(tests[::-1], np.zeros(4), flips=500)[::-1], found)
    assert not np.array_equal(step_down(tests, np.zeros(4), flips=500, seed=1), found)


def side(rng, name, mean, n=12, spread=1.0):
    return rng.normal(mean, spread, n), [f"{name}{i}" for i in range(n)]


def test_two_groups_are_flipped_around_their_common_level():
    """What both share is no difference, however far it lies from 0; nor is a wider spread."""
    rng = np.random.default_rng(6)
    p = [
        step_down([independent_groups(*side(rng, "a", 5.0, 30, 3.0), *side(rng, "b", 5.0, 60))], [0.0], flips=200)[0]
        for _ in range(200)
    ]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09
    (apart,) = step_down([independent_groups(*side(rng, "a", 6.5), *side(rng, "b", 5.0))], [0.0])
    assert apart < 0.05


def test_false_discovery_is_scipys():
    tests = gaps_of(np.random.default_rng(7), 8, 3)
    assert false_discovery(tests, [0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.04, 0.04])


def test_each_test_needs_its_p_value():
    with pytest.raises(ValueError, match=r"^p_values: an array of shape \(2,\) for 1 tests"):
        step_down(gaps_of(np.random.default_rng(8), 8), [0.1, 0.2])


def test_standardised_mean_by_hand():
    assert standardised_mean(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert standardised_mean(np.zeros(4)) == 0
    assert np.isnan(standardised_mean(np.array([0.1 + 0.2, 0.3, 0.3])))
    assert np.isnan(standardised_mean(np.array([1.0])))
