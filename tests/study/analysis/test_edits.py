"""Edits: spans that were changed, tokens in them, and the estimates over edits."""

import math

import numpy as np
import pytest

from ugap.data import TextRow
from ugap.scoring import ScorerId, TokenScores
from ugap.statistics import correlation, paired_gap
from ugap.study.analysis.edits import Edit, Measured, changes, inside, measure_edit, summary


def cut(text, spans):
    return [text[begin:end] for begin, end in spans]


@pytest.mark.parametrize(
    ("before", "after", "removed", "added", "share"),
    [
        ("a b c d e f", "a b c d e f", [], [], 0.0),
        ("a b c d e f", "a b c x d e f", [], ["x"], 1 / 13),
        ("a b c d e f", "a b c f", ["d e"], [], 2 / 10),
        # Two kept words between two changes are chance, three are kept.
        ("a b c d e f g", "a X c d Y f g", ["b c d e"], ["X c d Y"], 8 / 14),
        ("a b c d e f g", "a X c d e Y g", ["b", "f"], ["X", "Y"], 4 / 14),
        ("It ended.", "It ended!", ["."], ["!"], 2 / 6),
        ("one", "two three", ["one"], ["two three"], 1.0),
        ("", "", [], [], 0.0),
    ],
)
def test_changes(before, after, removed, added, share):
    found = changes(before, after)
    assert cut(before, found.before) == removed
    assert cut(after, found.after) == added
    assert found.share == pytest.approx(share)


def test_a_common_word_of_a_long_text_is_compared_too():
    # difflib drops words that make more than 1% of a text of 200 words, unless it is told not to.
    words = ["the"] * 150 + [f"w{i}" for i in range(100)]
    assert changes(" ".join(words), " ".join([*words, "end"])).share == pytest.approx(1 / 501)


def test_tokens_inside_a_span():
    # The space before a word belongs to its token.
    offsets = np.array([[0, 3], [3, 7], [7, 11], [11, 12]])
    assert inside([(4, 7)], offsets).tolist() == [False, True, False, False]
    assert inside([], offsets).tolist() == [False] * 4


def scored(words, surprisal):
    ends = np.cumsum([len(word) for word in words])
    offsets = np.stack([ends - [len(word) for word in words], ends], 1).astype(np.int32)
    s = np.array(surprisal, np.float32)
    ones = np.ones(len(s), np.float32)
    ids = np.arange(len(s), dtype=np.int32)
    return TokenScores("".join(words), ids, offsets, s, ones, ones, ones, None, ScorerId("tiny", "0"), False)


def test_an_edit_is_measured_over_the_tokens_of_both_texts():
    before = scored(["the", " cold", " wind", " blew", " on"], [1, 5, 1, 1, 9])
    after = scored(["the", " loud", " wind", " blew"], [1, 7, 2, 2])
    one = measure_edit(before, after, changes(before.text, after.text), None)
    assert one.n_tokens == 4
    assert (one.before["nll"], one.after["nll"]) == (2.0, 3.0)
    assert math.isnan(one.before["pmi"])
    # "cold wind blew on" is one change, as it keeps only two words. Two of its tokens tie with the one kept.
    assert one.removed["surprisal"] == 0.75
    assert one.added["surprisal"] == 1.0
    # Every token has the same entropy.
    assert one.added["entropy"] == 0.5


def test_nothing_points_where_nothing_or_all_is_changed():
    before, after = scored(["a", " b"], [1, 2]), scored(["c", " d"], [1, 2])
    assert all(map(math.isnan, measure_edit(before, before, changes("a b", "a b"), None).removed.values()))
    assert all(map(math.isnan, measure_edit(before, after, changes("a b", "c d"), None).removed.values()))


@pytest.fixture
def many():
    """Forty edits of twenty texts by two models: the more surprisal rises, the more the rating does."""
    rng = np.random.default_rng(0)
    edits, measured = [], []
    for i in range(40):
        text, move = f"text {i % 20}", 0.5 + 0.1 * rng.standard_normal()
        edits.append(Edit(TextRow(str(i), "edited", text), "after", "ab"[i % 2], (3.0, 3.0 + 4 * move)))
        auc = dict.fromkeys(("surprisal", "entropy", "deviation"), 0.6 + 0.1 * rng.standard_normal())
        unknown = dict.fromkeys(auc, math.nan)
        measured.append(Measured(i / 40, 10, {"nll": 3.0}, {"nll": 3.0 + move}, auc, unknown if i else auc))
    return edits, measured


def test_the_summary_resamples_texts(many):
    edits, measured = many
    found = summary(edits, measured, resamples=300, seed=1)
    moves = {(row["scope"], row["measure"]): row for row in found["moves"]}
    row = moves["all", "nll"]
    again = paired_gap(
        [one.after["nll"] for one in measured],
        [3.0] * 40,
        [edit.row.text for edit in edits],
        resamples=300,
        seed=1,
    )
    assert (row["change"], row["ci95"], row["n"], row["n_texts"]) == (again.gap, again.ci95, 40, 20)
    assert {scope for scope, _ in moves} == {"all", "a", "b", "edited least", "edited middle", "edited most"}
    assert moves["edited least", "nll"]["share"] < moves["edited most", "nll"]["share"]
    assert moves["a", "nll"]["n"] == 20
    # No text has PMI, so no row has.
    assert not any(measure == "pmi" for _, measure in moves)
    pointers = {(row["scope"], row["tokens"], row["pointer"]): row for row in found["pointers"]}
    assert pointers["all", "removed", "surprisal"]["auc"] == pytest.approx(
        np.mean([one.removed["surprisal"] for one in measured])
    )
    assert pointers["all", "added", "surprisal"]["n"] == 1


def test_a_text_counts_once_in_a_correlation(many):
    edits, measured = many
    (row, share) = summary(edits, measured, resamples=300, seed=1)["scores"]
    moves = np.array([one.after["nll"] - 3.0 for one in measured]).reshape(2, 20).mean(0)
    again = correlation(moves, 4 * moves, strata=["ab"[i % 2] for i in range(20)], resamples=300, seed=1)
    assert (row["measure"], row["n"], row["r"]) == ("nll", 20, pytest.approx(again.r))
    assert row["r"] > 0.99
    assert share["measure"] == "share"


def test_without_ratings_there_is_no_correlation(many):
    edits, measured = many
    bare = [Edit(edit.row, edit.after, edit.group, (math.nan, math.nan)) for edit in edits]
    found = summary(bare, measured, resamples=100, seed=0)
    assert found["scores"] == []
    assert not any(row["measure"] == "score" for row in found["moves"])
