import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ugap.statistics import McNemar, mcnemar, wilson

pytestmark = pytest.mark.filterwarnings("error")


def test_wilson_by_hand():
    # z = 1.959964, z² = 3.841459: centre (12 + z²/2) / (20 + z²), half width z sqrt(12 * 8 / 20 + z²/4) / (20 + z²).
    z = 1.959963984540054
    half = z * math.sqrt(12 * 8 / 20 + z**2 / 4) / (20 + z**2)
    centre = (12 + z**2 / 2) / (20 + z**2)
    assert wilson(12, 20) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(12, 20) == pytest.approx((0.38658, 0.78119), abs=1e-5)
    # Of none and of all, one end is exact and the other z² / (n + z²) away.
    assert wilson(0, 10) == pytest.approx((0, z**2 / (10 + z**2)))
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10) == pytest.approx((10 / (10 + z**2), 1))
    assert wilson(10, 10)[1] == 1


@given(st.integers(1, 300), st.data(), st.floats(0.5, 0.999))
def test_wilson_is_that_of_scipy(n, data, confidence):
    k = data.draw(st.integers(0, n))
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@given(st.integers(1, 100), st.data())
def test_wilson_holds_the_proportion_and_moves_with_it(n, data):
    k = data.draw(st.floats(0, n))
    low, high = wilson(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    if k + 0.5 <= n:
        assert low < wilson(k + 0.5, n)[0]
        assert high < wilson(k + 0.5, n)[1] or high == 1


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((1, 0), "n"),
        ((-1, 5), "k"),
        ((6, 5), "k"),
        ((float("nan"), 5), "k"),
        ((1, 5, 1.0), "confidence"),
        ((1, 5, 0), "confidence"),
    ],
)
def test_wilson_names_the_bad_argument(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: "):
        wilson(*arguments)


def rights(both: int, a_only: int, b_only: int, none: int) -> tuple[list[bool], list[bool]]:
    a = [True] * (both + a_only) + [False] * (b_only + none)
    b = [True] * both + [False] * a_only + [True] * b_only + [False] * none
    return a, b


def test_mcnemar_by_hand():
    # Of 10 items on which they differ, 8 to 2: 2 (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024.
    assert astuple(mcnemar(*rights(5, 8, 2, 3))) == pytest.approx((18, 8, 2, 6 / 18, 112 / 1024))
    # 6 to 0: 2 / 2^6.
    assert astuple(mcnemar(*rights(0, 0, 6, 0))) == pytest.approx((6, 0, 6, -1.0, 2 / 64))
    assert mcnemar(*rights(0, 3, 3, 1)).p_value == 1
    assert mcnemar(*rights(4, 0, 0, 2)) == McNemar(6, 0, 0, 0.0, 1.0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_has_two_equal_sides(pairs):
    a, b = zip(*pairs, strict=True)
    one, other = mcnemar(a, b), mcnemar(b, a)
    assert (one.a_only, one.b_only) == (other.b_only, other.a_only)
    assert one.difference == -other.difference == pytest.approx(np.mean(a) - np.mean(b))
    assert one.p_value == pytest.approx(other.p_value)
    assert 0 < one.p_value <= 1


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "a_right"),
        ([True], [], "b_right: expected a list of truth values"),
        ([True], [True, False], "b_right: 2 values for 1 of a_right"),
        ([0.5], [True], "a_right: expected a list of truth values, got float64"),
        ([True], [[True]], "b_right: expected a list of truth values, got bool of shape"),
        (np.array([], dtype=bool), [], "a_right: no values"),
    ],
)
def test_mcnemar_names_the_bad_argument(a, b, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(a, b)
