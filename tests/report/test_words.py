import math

import pytest

from ugap.report import findings
from ugap.report.rows import GapRow, read_gaps
from ugap.report.words import MEASURES, MOST_SENTENCES, decimals, fixed, tally


def test_a_positive_gap(gap_row):
    assert findings([gap_row()], []) == [
        "In creative text, people are 0.48 nats per token [0.41, 0.55] more surprising than gemma-3-270m with "
        "top-p-0.9 decoding (2.97 against 2.49, ratio 1.19; 16 prefixes of 8 source texts)."
    ]


def test_a_negative_gap_is_stated_as_the_models(gap_row):
    row = gap_row(gap=-0.3, ci95=(-0.4, -0.2), decoding="ancestral", domain="functional", n_sources=16)
    assert findings([row], []) == [
        "In functional text, gemma-3-270m with ancestral sampling (T=1) is 0.30 nats per token [0.20, 0.40] more "
        "surprising than people (2.97 against 3.27, ratio 0.91; 16 prefixes)."
    ]


@pytest.mark.parametrize("gap", [0.03, -0.03, 0.0])
def test_an_interval_that_covers_zero_claims_nothing(gap_row, gap):
    (sentence,) = findings([gap_row(gap=gap, ci95=(gap - 0.1, gap + 0.1), p_adjusted=0.001)], [])
    assert "no difference can be told between people and gemma-3-270m" in sentence
    assert "more surprising" not in sentence
    assert f"the gap is {gap:.2f} nats per token [{gap - 0.1:.2f}, {gap + 0.1:.2f}]" in sentence


@pytest.mark.parametrize("ci95", [(0.0, 0.2), (-0.2, 0.0), None, (None, None), (float("nan"), float("nan"))])
def test_an_interval_that_touches_zero_or_is_missing_claims_nothing(gap_row, ci95):
    (sentence,) = findings([gap_row(gap=0.1, ci95=ci95)], [])
    assert "no difference can be told" in sentence
    assert ("[no interval]" in sentence) == (ci95 is None or ci95[0] != ci95[0] or ci95[0] is None)


def test_one_rule_decides_what_is_told(gap_row):
    """The corrected p; where it withholds what the interval suggests, the sentence says why."""
    (corrected,) = findings([gap_row(p_adjusted=0.051)], [])
    assert "no difference can be told between people and gemma-3-270m" in corrected
    assert "not significant after the correction, p = 0.051" in corrected
    (few,) = findings([gap_row(p_adjusted=None, n_sources=5)], [])
    assert "no difference can be told" in few
    assert "cannot be significant: too few source texts" in few
    assert "correction" not in findings([gap_row(p_adjusted=0.049)], [])[0]
    assert "correction" not in findings([gap_row(ci95=(-0.1, 1.0), p_adjusted=0.9)], [])[0]
    count = findings([gap_row(), gap_row(p_adjusted=0.051), gap_row(p_adjusted=None)], [])[0]
    assert count == "People are more surprising in 1 of 3 comparisons; no difference can be told in 2."


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_gaps_that_could_not_be_estimated_are_left_out(gap_row, nothing):
    assert findings([], []) == findings([gap_row(gap=None)], []) == ["No gap in surprisal could be estimated."]
    good = gap_row(domain="functional")
    assert findings([gap_row() | {"gap": nothing}, good], []) == findings([good], [])


def test_other_measures_make_no_sentences(gap_row):
    assert findings([gap_row(), gap_row(measure="entropy", gap=9.0)], []) == findings([gap_row()], [])


def test_the_sentences_take_ancestral_sampling_and_the_largest_gap(gap_row):
    gaps = {"top-p-0.9": 0.5, "greedy": 1.9, "ancestral": 0.1, "T=1.1": -0.7}
    rows = [gap_row(gap=gap, ci95=(gap - 0.05, gap + 0.05), decoding=name) for name, gap in gaps.items()]
    count, first, second = findings(rows, [])
    assert count == "People are more surprising in 3 of 4 comparisons; the model is more surprising in 1."
    assert "ancestral sampling" in first
    assert "greedy decoding" in second
    assert "greedy" not in "".join(findings([row for row in rows if row["decoding"] == "ancestral"], []))


def test_given_candidates_alone(gap_row):
    rows = [gap_row(model=name, decoding="given", scorer="gemma-3-270m") for name in ("writer A", "writer B")]
    sentences = findings(rows, [])
    assert len(sentences) == 2
    assert (
        "more surprising than writer A (2.97 against 2.49, ratio 1.19; 16 prefixes of 8 source texts; scored by"
        in sentences[0]
    )
    assert "writer B (" in sentences[1]
    assert "decoding" not in "".join(sentences)


def test_one_domain_alone_has_no_word_of_the_other(study, contrast_row):
    text = " ".join(findings(study(domains=("creative",)), [contrast_row(contrast="stage", a="smollm2-135m-instruct")]))
    assert "functional" not in text
    assert "smollm2-135m-instruct (instruct)" in text


def test_contrasts_of_domains(gap_row, contrast_row):
    sides = {"creative": 0.1, "functional": -0.2}
    rows = [gap_row(gap=g, ci95=(g - 0.05, g + 0.05), domain=d, decoding="ancestral") for d, g in sides.items()]
    assert findings(rows, [contrast_row(gap_a=0.1, gap_b=-0.2)])[-1] == (
        "For gemma-3-270m with ancestral sampling (T=1), the gap is larger in creative than in functional text by 0.30 "
        "nats per token [0.10, 0.50] (gaps 0.10 and -0.20; 16 and 40 source texts)."
    )
    smaller = findings(rows, [contrast_row(-0.3, (-0.5, -0.1))])[-1]
    assert "the gap is smaller in creative than in functional text by 0.30 nats per token [0.10, 0.50]" in smaller
    corrected = findings(rows, [contrast_row(-0.3, (-0.5, -0.1), p_adjusted=0.2)])[-1]
    assert "no difference can be told between the gaps of creative and functional text: -0.30 nats" in corrected
    assert "not significant after the correction, p = 0.200" in corrected
    unsure = findings(rows, [contrast_row(0.3, (-0.1, 0.7))])[-1]
    assert "no difference can be told between the gaps of creative and functional text: 0.30 nats" in unsure
    assert "larger" not in unsure


def test_contrasts_of_models(gap_row, contrast_row):
    rows = [gap_row(model=model, decoding="ancestral") for model in ("smol", "gemma-3-270m")]
    assert findings(rows, [contrast_row(0.5, (0.3, 0.7), contrast="stage")])[-1] == (
        "In creative text, with ancestral sampling (T=1), the gap is larger for smol (instruct) than for gemma-3-270m "
        "(base) by 0.50 nats per token [0.30, 0.70] (gaps 0.90 and 0.40; 16 source texts)."
    )


def test_contrasts_without_a_number_or_a_told_decoding_are_left_out(gap_row, contrast_row):
    rows = [gap_row(decoding="ancestral")]
    assert findings(rows, [contrast_row(None, (None, None))]) == findings(rows, [])
    assert findings(rows, [contrast_row(decoding="top-k-50")]) == findings(rows, [])
    assert findings(rows, [contrast_row(measure="entropy")]) == findings(rows, [])


def test_a_models_own_scores_come_first_and_other_scorers_are_counted(gap_row):
    domains = ("creative", "functional", "legal")
    cross = [gap_row(gap=-0.5, ci95=(-0.6, -0.4), scorer="judge", domain=domain) for domain in domains]
    own = [gap_row(domain=domain) for domain in domains]
    sentences = findings([*cross, *own], [])
    assert sentences[0] == "People are more surprising in all 3 comparisons."
    assert sentences[-1] == "Scored by judge instead, the model is more surprising in all 3 comparisons."
    assert sentences[:-1] == findings(own, [])
    assert "scored by judge" in findings(cross, [])[1]


def test_a_large_study_still_fits_and_is_told_evenly(study, contrast_row):
    models = [f"model-{i}" for i in range(4)]
    contrasts = [contrast_row(model=model) for model in models]
    sentences = findings(study(models, decodings=7), contrasts)
    assert len(sentences) <= MOST_SENTENCES
    for model in models:
        assert sum(f"{model} with ancestral" in sentence for sentence in sentences) == 3  # two domains and a contrast
    assert len(findings(study([f"model-{i}" for i in range(30)]), [])) == MOST_SENTENCES
    two = findings(study(), [contrast_row(), contrast_row(model="smollm2-135m-instruct")])
    assert len(two) == 1 + 8 + 2


@pytest.mark.parametrize(
    ("signs", "sentence"),
    [
        ([1], "People are more surprising in the one comparison"),
        ([1, 1], "People are more surprising in both comparisons"),
        ([0], "No difference can be told"),
        ([0, 0], "No difference can be told in any of 2 comparisons"),
        ([-1, -1, 0], "The model is more surprising in 2 of 3 comparisons; no difference can be told in 1"),
        (
            [1, 1, -1, 0],
            "People are more surprising in 2 of 4 comparisons; the model is more surprising in 1, and no difference "
            "can be told in 1",
        ),
    ],
)
def test_the_count(gap_row, signs, sentence):
    rows = [GapRow.read(gap_row(gap=sign, ci95=(sign - 0.5, sign + 0.5))) for sign in signs]
    assert tally(rows, MEASURES["nll"]) == sentence


def test_numbers_that_are_not_zero_do_not_read_as_zero(gap_row):
    (sentence,) = findings([gap_row(gap=0.0041, ci95=(0.0012, 0.007))], [])
    assert "0.004 nats per token [0.001, 0.007]" in sentence
    assert decimals(0.5, 0.0, float("nan")) == 2
    assert decimals(0.00001) == 4
    assert fixed(-0.0001, 2) == "0.00"


def test_null_is_nan(gap_row):
    (row,) = read_gaps([gap_row(ratio=None, effect_size=None, wasserstein=None)], "nll")
    assert all(math.isnan(value) for value in (row.ratio, row.effect_size, row.wasserstein))
