import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ugap.data import TextRow
from ugap.errors import InputError
from ugap.profile.texts import FEATURES
from ugap.study.analysis.quality import RatedText, human_means, load_rated, quality_measures, relate

ROWS = [
    {
        "id": f"t{i}",
        "story": f"Once upon a time {i}",
        "prompt": "Tell me.",
        "by": "ab"[i % 2],
        "good": i % 4,
        "nice": None,
    }
    for i in range(12)
]


def rated(ratings, author="", group="", number=0):
    return RatedText(TextRow(str(number), "rated", "text"), ratings, author, group)


def of_rows(rows, rating="good", scope="overall", author=None):
    return {
        row["measure"]: row for row in rows if (row["rating"], row["scope"], row["author"]) == (rating, scope, author)
    }


def test_what_is_read(write_rows):
    rows = [{**row, "nice": "3.5" if i > 1 else None} for i, row in enumerate(ROWS)]
    rows.append({"id": "none", "story": "Nobody rated this."})
    rows[-1]["by"] = "a"
    texts = load_rated(write_rows(rows), ["good", "nice"], text_column="story", author_column="by")
    assert [text.row.id for text in texts] == [f"t{i}" for i in range(12)]
    assert texts[5].ratings == {"good": 1, "nice": 3.5}
    assert math.isnan(texts[0].ratings["nice"])
    assert {text.author for text in texts} == {"a", "b"}
    assert {text.prefix for text in texts} == {""}  # there is a column of this name, but nobody asked for it
    (first, *_) = load_rated(write_rows(ROWS), ["good"], text_column="story", prompt_column="prompt")
    assert first.prefix == "Tell me.\n\n"


def test_a_csv_is_read(tmp_path):
    path = tmp_path / "rated.csv"
    path.write_text("text,score\n" + "".join(f"tale {i},{i / 2 if i else ''}\n" for i in range(12)))
    assert [text.ratings["score"] for text in load_rated(str(path), ["score"])] == [i / 2 for i in range(1, 12)]


@pytest.mark.parametrize(
    ("ratings", "columns", "message"),
    [
        (["by"], {}, r"row 1: column 'by' holds 'a', and a rating is a number$"),
        (["story"], {}, r"row 1: column 'story' holds 'Once upon a time 0', and a rating is a number$"),
        (["worth"], {}, r"no column 'worth'$"),
        (["good"], {"author_column": "who"}, r"row 1: no column 'who'; the columns are "),
        (["good"], {"group_column": "nice"}, r"row 1: column 'nice' names no group$"),
        (["good"], {"text_column": "words"}, r"row 1: no column 'words'; the columns are "),
        (["good"], {"prompt_column": "ask"}, r"row 1: no column 'ask'; the columns are "),
        (["nice"], {}, r"column 'nice' rates 0 texts, and at least 10 are needed$"),
        (["good"], {"limit": 9}, r"column 'good' rates 9 texts, and at least 10 are needed$"),
        ([], {}, r"no column of ratings is given$"),
    ],
)
def test_what_is_refused(write_rows, ratings, columns, message):
    with pytest.raises(InputError, match=message) as error:
        load_rated(write_rows(ROWS), ratings, **{"text_column": "story", **columns})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [True, "much", [1], "inf", "nan", float("inf")])
def test_what_is_no_rating(write_rows, value):
    rows = [*ROWS, {**ROWS[0], "id": "odd", "good": value}]
    with pytest.raises(InputError, match=r"row 13: column 'good' holds .*, and a rating is a number$"):
        load_rated(write_rows(rows), ["good"], text_column="story")


def test_the_measures(tiny_scorer, tiny_model, make_profile, text_rows):
    profile = make_profile(tiny_model).kind("creative")
    (scores,) = tiny_scorer.score([text_rows[0]["text"]], ["The tailor said "], pmi=True)
    found = quality_measures(scores, profile)
    s, h = scores.surprisal.astype(np.float64), scores.entropy.astype(np.float64)
    assert found["nll"] == pytest.approx(s.mean())
    assert found["varentropy"] == pytest.approx(scores.varentropy.mean())
    assert found["log_rank"] == pytest.approx(np.log(scores.rank).mean())
    assert found["pmi"] == pytest.approx(scores.pmi.mean())
    assert found["excess"] == pytest.approx((s - profile.curve(h)).mean())
    assert found["excess distance"] == abs(found["excess"])
    assert found["nll distance"] == pytest.approx(abs(s.mean() - profile.means["surprisal"]))
    assert found["entropy distance"] == pytest.approx(abs(h.mean() - profile.means["entropy"]))
    assert found["length"] == len(scores)
    assert not [name for name, value in found.items() if not math.isfinite(value) and name != "profile distance"]
    without = quality_measures(replace(scores, marginal_surprisal=None))
    assert not [name for name in without if "distance" in name or "pmi" in name or "excess" in name]
    assert without == {name: found[name] for name in without}


def test_the_profile_distance_is_without_pmi(tiny_scorer, text_rows):
    from ugap.profile import HumanProfile

    texts = [row["text"] for row in text_rows] * 2
    scores = tiny_scorer.score(texts, ["Once "] * 12 + ["The tailor said "] * 12, pmi=True)
    profile = HumanProfile.fit({"creative": scores}, resamples=2).kind("creative")
    assert profile.texts is not None
    one = scores[-1]
    rest = [name for name in FEATURES if name != "pmi"]
    squared = profile.texts.distance(profile.text_features(one), len(one), rest)
    assert quality_measures(one, profile)["profile distance"] == pytest.approx(math.sqrt(squared))
    assert squared != pytest.approx(profile.texts.distance(profile.text_features(one), len(one)))


def test_the_human_level_of_the_rank(tiny_model, make_profile):
    """From its quantiles: about the mean logarithm of the ranks that were fitted."""
    levels = human_means(make_profile(tiny_model, n_texts=40).kind("creative"))
    assert 1.5 < levels["log_rank"] < np.log(400)
    assert levels["excess"] == 0
    assert levels.keys() == {"nll", "entropy", "varentropy", "deviation", "bits_per_byte", "log_rank", "excess"}


def simulate(n=120):
    """People's texts are more surprising and rated higher; within both groups the less surprising ones are preferred.
    The wild measure has its best in the middle."""
    rng = np.random.default_rng(0)
    texts, measures = [], []
    for i in range(n):
        human = i % 2
        nll, wild, length = 2.0 + human + 0.3 * rng.standard_normal(), rng.uniform(-2, 2), rng.uniform(50, 200)
        good = 3 * human - 2 * (nll - human) + 0.3 * rng.standard_normal()
        wildly = -((wild - 0.5) ** 2) + 0.5 * rng.standard_normal()
        texts.append(rated({"good": good, "wildly": wildly if i < 100 else math.nan}, ("model", "human")[human]))
        measures.append({"nll": nll, "wild": wild, "noise": rng.standard_normal(), "length": length})
    return texts, measures


def test_scopes_and_tests():
    texts, measures = simulate()
    rows = relate(texts, measures, resamples=400)
    assert len(rows) == 2 * 4 * 4
    overall, within = of_rows(rows), of_rows(rows, scope="within")
    assert overall["nll"]["spearman"]["ci95"][0] > 0
    assert within["nll"]["spearman"]["ci95"][1] < 0
    for author in ("human", "model"):
        alone = of_rows(rows, scope="author", author=author)["nll"]
        assert alone["n"] == 60
        assert alone["spearman"]["ci95"][1] < 0
        of = [i for i, text in enumerate(texts) if text.author == author]
        known = stats.pearsonr([measures[i]["nll"] for i in of], [texts[i].ratings["good"] for i in of])
        assert alone["pearson"]["r"] == pytest.approx(known.statistic)
    hill = of_rows(rows, "wildly", "within")["wild"]
    assert hill["n"] == 100
    assert hill["quadratic"]["found"]
    assert hill["quadratic"]["peak"] == pytest.approx(0.5, abs=0.2)
    assert hill["quadratic_length"]["found"]
    assert not [row for row in rows if row["measure"] in ("nll", "noise") and row["quadratic"]["found"]]
    assert within["length"]["spearman_length"] is None
    json.dumps(rows)


def test_of_a_distance_no_bend_is_sought():
    texts, measures = simulate()
    rows = relate(texts, [{**one, "nll distance": abs(one["nll"])} for one in measures], resamples=200)
    assert {row["measure"] for row in rows if row["quadratic"] is None} == {"nll distance"}
    assert of_rows(rows)["nll distance"]["spearman"]["n"] == 120


def test_holm_is_over_the_measures_of_a_scope():
    texts, measures = simulate()
    within = of_rows(relate(texts, measures, resamples=200), "good", "within")
    p = {name: row["spearman"]["p_value"] for name, row in within.items()}
    smallest = min(p, key=lambda name: p[name])
    assert within[smallest]["spearman"]["p_holm"] == pytest.approx(min(1, 4 * p[smallest]))
    assert all(row["spearman"]["p_holm"] >= row["spearman"]["p_value"] for row in within.values())


def test_a_group_is_what_texts_are_compared_within():
    texts, measures = simulate()
    grouped = [replace(text, group=text.author, author="") for text in texts]
    rows = relate(grouped, measures, resamples=200)
    assert {row["scope"] for row in rows} == {"overall"}
    within = of_rows(relate(texts, measures, resamples=200), scope="within")["nll"]
    assert of_rows(rows)["nll"]["spearman"] == within["spearman"]


def test_a_measure_that_few_texts_have_is_left_out():
    texts, measures = simulate()
    for one in measures[9:]:
        one["noise"] = math.nan
    assert "noise" not in of_rows(relate(texts, measures, resamples=200))
