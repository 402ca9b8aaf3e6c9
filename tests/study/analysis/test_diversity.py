import random

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.study.analysis.diversity import SampleSet, compare_samples, load_samples

TALE = "once upon a time there was a king and a tailor who lost nine ships in the old forest"
WORDS = TALE.split()


def rows_of(system, group, n, words=12):
    rng = random.Random(f"{system}{group}")
    return [
        {"id": "same", "text": " ".join(rng.choices(WORDS, k=words)), "by": system, "prompt": group} for _ in range(n)
    ]


def test_texts_are_cut_and_gathered_in_sets(write_rows):
    rows = [*rows_of("human", "p", 9), *rows_of("human", "p", 2, words=7), *rows_of("model", "p", 4)]
    rows += [*rows_of("model", "q", 5), *rows_of("rare", "q", 3)]
    samples = load_samples(write_rows(rows), group_column="prompt", system_column="by", size=4, words=8)
    assert [(one.system, one.group) for one in samples.sets] == [("human", "p")] * 2 + [("model", "p"), ("model", "q")]
    assert all(len(text.split()) == 8 for one in samples.sets for text in one.texts)
    assert all(len(one.texts) == 4 for one in samples.sets)
    assert samples.sets[0].texts == tuple(" ".join(row["text"].split()[:8]) for row in rows[:4])
    assert samples.n_texts == {"human": 8, "model": 8, "rare": 0}
    assert samples.n_short == {"human": 2, "model": 0, "rare": 0}


def test_without_a_system(write_rows):
    samples = load_samples(write_rows(rows_of("x", "p", 4)), group_column="prompt", size=4, words=8)
    assert [one.system for one in samples.sets] == ["all"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_column": "ask"}, r"row 1: no column 'ask'; the columns are "),
        ({"text_column": "story"}, r"row 1: no column 'story'; the columns are "),
        ({"system_column": "who"}, r"row 1: no column 'who'; the columns are "),
        ({"group_column": "nothing"}, r"row 1: column 'nothing' names nothing$"),
        ({"text_column": "nothing"}, r"row 1: column 'nothing' holds no text$"),
        ({"text_column": "odd"}, r"row 1: column 'odd' a lone surrogate \(U\+D83E\) at character 1$"),
        ({"size": 5}, r"no 'prompt' has 5 texts of 8 words by one system$"),
        ({"words": 13}, r"no 'prompt' has 4 texts of 13 words by one system$"),
        ({"size": 1}, r"size is 1, and at least 2 is needed$"),
        ({"words": 3}, r"words is 3, and at least 4 is needed$"),
    ],
)
def test_what_is_refused(write_rows, change, message):
    rows = [{**row, "nothing": None, "odd": "\ud83e"} for row in rows_of("x", "p", 4)]
    with pytest.raises(InputError, match=message) as error:
        load_samples(write_rows(rows), **{"group_column": "prompt", "size": 4, "words": 8, **change})
    assert "\n" not in str(error.value)


def sets_and_measures(n_groups=8):
    """People's and a model's sets: the model's clusters are two fewer on every prompt, and the rest is noise."""
    rng = np.random.default_rng(0)
    sets, measures = [], []
    for group in range(n_groups):
        level = 5 + 2 * rng.standard_normal()
        for system, less, n in (("human", 0, 2), ("model", 2, 1)):
            for _ in range(n):
                sets.append(SampleSet(system, str(group), ("a", "b")))
                measures.append(
                    {"clusters": level - less + 0.2 * rng.standard_normal(), "noise": rng.standard_normal()}
                )
    return sets, measures


def test_means_and_differences_are_over_prompts():
    sets, measures = sets_and_measures()
    means, differences = compare_samples(sets, measures, "human")
    by = {(row["system"], row["measure"]): row for row in means}
    human = by["human", "clusters"]
    values = [one["clusters"] for one, of in zip(measures, sets, strict=True) if of.system == "human"]
    assert human["mean"] == pytest.approx(np.mean(values))
    assert (human["n_sets"], human["n_groups"]) == (16, 8)
    assert human["ci95"][0] < human["mean"] < human["ci95"][1]
    assert {(row["system"], row["measure"]) for row in differences} == {("model", "clusters"), ("model", "noise")}
    found = {row["measure"]: row for row in differences}
    # Prompts differ by more than the systems do: paired by prompt, the difference is told all the same.
    assert found["clusters"]["difference"] == pytest.approx(-2, abs=0.3)
    assert found["clusters"]["ci95"][1] < -1.5
    assert found["clusters"]["p_holm"] == pytest.approx(2 * found["clusters"]["p_value"])
    assert found["noise"]["ci95"][0] < 0 < found["noise"]["ci95"][1]


def test_only_prompts_that_both_answered_are_compared():
    sets, measures = sets_and_measures()
    sets = [SampleSet(one.system, one.group if one.system == "human" else f"x{one.group}", one.texts) for one in sets]
    assert compare_samples(sets, measures, "human")[1] == []
    assert compare_samples(sets, measures)[1] == []
