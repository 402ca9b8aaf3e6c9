"""Distinct n-grams and repetition, against counts by hand."""

import math

import pytest

from ugap.statistics import distinct_n, repetition


def test_distinct_n_grams_of_all_texts_together():
    texts = ["the cat saw the cat", "the cat slept"]
    assert distinct_n(texts, 1) == 4 / 8
    assert distinct_n(texts, 2) == 4 / 6
    assert distinct_n(["a b c", "a b c"], 3) == 1 / 2
    assert distinct_n(["a\nb  c"], 3) == 1


def test_texts_that_are_too_short_have_no_n_gram():
    assert math.isnan(distinct_n(["a b c", ""], 4))
    assert math.isnan(repetition([[1], []]))


def test_repetition_within_a_window():
    ids = [1, 2, 3, 1, 4, 2]
    assert repetition([ids]) == 2 / 5
    assert repetition([ids], window=3) == 1 / 5  # the 1, three back; the 2 is four back
    assert repetition([ids, [7, 7]]) == 3 / 6


@pytest.mark.parametrize("n", [1, 2, 4])
def test_one_text_over_and_over(n):
    text = "once upon a time there was a king"
    assert distinct_n([text] * 10, n) == pytest.approx(distinct_n([text], n) / 10)
