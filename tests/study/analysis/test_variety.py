import math

import numpy as np
import pytest

from ugap.statistics import distinct_n, repetition
from ugap.statistics.diversity import self_bleu
from ugap.study.analysis.variety import VARIETY, sample_variety, scored_text, variety

TEXTS = [" the old man said to the old man", " once upon a time there was a tailor", " once upon a time"]


def test_of_whole_and_of_cut_texts(tiny_scorer):
    scores = tiny_scorer.score(TEXTS, ["Once"] * 3)
    found = variety(scores)
    assert tuple(found) == VARIETY
    assert found["distinct_2"] == distinct_n(TEXTS, 2)
    assert found["distinct_4"] == distinct_n(TEXTS, 4)
    assert found["repetition"] == repetition([one.token_ids.tolist() for one in scores])
    cut = [one.first(3) for one in scores]
    shown = [scored_text(one) for one in cut]
    assert all(text.startswith(short) and len(short) < len(text) for text, short in zip(TEXTS, shown, strict=True))
    assert variety(cut)["repetition"] == repetition([one.token_ids.tolist()[:3] for one in scores])


def test_nothing_to_tell(tiny_scorer):
    (one,) = tiny_scorer.score(TEXTS[:1], ["Once"])
    assert scored_text(one.first(0)) == ""
    assert all(math.isnan(value) for value in variety([one.first(0)]).values())
    assert variety([one.first(0), one]) == pytest.approx(variety([one]))


def test_of_a_sample():
    pytest.importorskip("sacrebleu")
    embeddings = np.eye(3)
    found = sample_variety(TEXTS, embeddings)
    assert found["distinct_2"] == distinct_n(TEXTS, 2)
    assert found["self_bleu"] == self_bleu(TEXTS)
    assert found["repeated_4"] == 0
    assert found["clusters"] == 3
    assert found["vendi"] == pytest.approx(3)
    assert sample_variety(TEXTS, embeddings, threshold=1.5)["clusters"] == 1
    without = sample_variety(TEXTS, bleu=False)
    assert without == {name: found[name] for name in ("distinct_2", "distinct_4", "compression_ratio", "repeated_4")}
