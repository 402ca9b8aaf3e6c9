import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugap.statistics import holm
from ugap.statistics.significance import rank_sum, signed_rank, standardised_mean

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


def test_signed_rank_by_hand():
    # All of n = 5 signs alike: 2 of the 2^5 outcomes are as extreme.
    assert signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5])) == pytest.approx(2 / 32)
    assert np.isnan(signed_rank(np.array([0.1, 0.2, 0.3, 0.4])))
    assert signed_rank(np.zeros(3)) == 1
    assert np.isnan(signed_rank(np.zeros(1)))
    assert 0 < signed_rank(np.array([0.0, 0.0, 0.0, 0.1, 0.2])) <= 1  # zeros and few values, without a warning


def test_rank_sum_by_hand():
    # Disjoint samples of 5 and 5: 2 of the C(10, 5) = 252 arrangements are as extreme.
    assert rank_sum(np.arange(5.0), np.arange(5.0) + 10) == pytest.approx(2 / 252)
    assert rank_sum(np.ones(6), np.ones(7)) == 1
    assert np.isnan(rank_sum(np.arange(4.0), np.arange(9.0)))


def test_standardised_mean_by_hand():
    assert standardised_mean(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)
    assert standardised_mean(np.zeros(4)) == 0
    assert np.isnan(standardised_mean(np.array([0.1 + 0.2, 0.3, 0.3])))
    assert np.isnan(standardised_mean(np.array([1.0])))
