"""Distinct n-grams, repetition, likeness and clusters, against counts by hand."""

import math
import sys
import zlib

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.statistics import distinct_n, repetition
from ugap.statistics.diversity import compression_ratio, n_clusters, repeated_n, self_bleu, vendi


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


def test_repeated_n_grams_of_each_text():
    texts = ["so it goes so it goes", "so it went", "one"]
    assert repeated_n(texts, 2) == pytest.approx((2 / 5 + 0) / 2)  # the text of one word has no pair
    assert repeated_n(texts, 1) == pytest.approx((3 / 6 + 0 + 0) / 3)
    assert repeated_n(["a b c", "a b c"], 2) == 0  # across texts nothing counts
    assert math.isnan(repeated_n(["one", ""], 2))


def test_compression_is_that_of_zlib():
    texts = ["once upon a time there was a king"] * 8
    raw = "\n".join(texts).encode()
    assert compression_ratio(texts) == len(raw) / len(zlib.compress(raw, 9))
    varied = ["once upon a time", "the miller slept", "no bird sang there", "she counted nine ships"]
    assert compression_ratio(texts[:4]) > 2 > compression_ratio(varied)
    assert math.isnan(compression_ratio(["", ""]))


def test_self_bleu():
    """By hand: BLEU-4 of five words of which the last differs is the geometric mean of 4/5, 3/4, 2/3 and 1/2."""
    pytest.importorskip("sacrebleu")
    expected = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["king had three sons yesterday", "king had three sons today"]) == pytest.approx(expected)
    assert self_bleu(["once upon a time there was"] * 3) == pytest.approx(1)
    far = ["once upon a time there was", "nine ships sailed past our harbour", "why would bread grow on trees"]
    near = [*far[:2], "nine ships sailed past my harbour"]
    assert self_bleu(far) < self_bleu(near) < 1
    assert math.isnan(self_bleu(["alone"]))


def test_without_sacrebleu(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(InputError, match=r'^sacrebleu is not installed: pip install "ugap\[diversity\]"$'):
        self_bleu(["one", "two"])


def test_vendi():
    assert vendi(np.eye(5)) == pytest.approx(5)
    assert vendi(np.ones((5, 3))) == pytest.approx(1)
    assert vendi(np.repeat(np.eye(2), 4, axis=0)) == pytest.approx(2)
    # Of 3 and 1: the entropy of the shares 3/4 and 1/4.
    assert vendi([[2, 0], [1, 0], [5, 0], [0, 3]]) == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))


def test_clusters():
    angles = np.radians([0, 5, 10, 90, 95, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert n_clusters(points) == 3
    assert n_clusters(3 * points[::-1]) == 3
    assert n_clusters(points, threshold=1e-4) == 6
    assert n_clusters(points, threshold=1.9) == 1
    assert n_clusters(np.ones((4, 2))) == 1
    # A chain of neighbours is not one cluster: its ends say different things.
    chain = np.radians([0, 25, 50, 75])
    assert n_clusters(np.stack([np.cos(chain), np.sin(chain)], axis=1), threshold=0.1) == 2
    assert n_clusters([[1.0, 2.0]]) == 1


@pytest.mark.parametrize("embeddings", [[], [1.0, 2.0], [[1.0, float("nan")]], [[0.0, 0.0]]])
@pytest.mark.parametrize("measure", [vendi, n_clusters])
def test_what_is_no_embedding(measure, embeddings):
    with pytest.raises(ValueError, match="embeddings: "):
        measure(embeddings)
