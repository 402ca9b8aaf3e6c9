"""Features of whole texts and their human reference, against formulas written out here."""

from dataclasses import replace

import numpy as np
import pytest

from ugap.profile import HumanProfile
from ugap.profile.texts import FEATURES, LENGTHS, TextReference
from ugap.scoring.records import ScorerId, TokenScores


def text(seed, n=300, level=1.0, pmi=0.5, shift=0.0, ids=None):
    """Made-up scores: surprisal scatters around `level` times the entropy; tokens come back now and then."""
    rng = np.random.default_rng(seed)
    h = rng.gamma(2.0, 1.3 * rng.uniform(0.8, 1.2), n) + shift
    s = level * h * rng.gamma(2.0, 0.5, n)
    columns = (s, h, np.ones(n), np.ones(n), s + (pmi or 0) + rng.normal(0, 0.3, n))
    s, h, v, r, m = (column.astype(np.float32) for column in columns)
    return TokenScores(
        text="a" * n,
        token_ids=rng.integers(0, 400, n).astype(np.int32) if ids is None else np.resize(ids, n).astype(np.int32),
        offsets=np.stack([np.arange(n), np.arange(n) + 1], 1).astype(np.int32),
        surprisal=s,
        entropy=h,
        varentropy=v,
        rank=r,
        marginal_surprisal=m if pmi is not None else None,
        scorer=ScorerId("tiny", "aaaa"),
        straddles=False,
    )


@pytest.fixture(scope="module")
def fitted():
    return HumanProfile.fit({"creative": [text(i) for i in range(80)]}, resamples=2)


@pytest.fixture(scope="module")
def domain(fitted):
    return fitted.kind("creative")


def distance(domain, scores, n=128, which=FEATURES):
    return domain.texts.distance(domain.text_features(scores.first(n)), n, which)


def test_features_are_what_they_say(domain):
    scores = text(1000, 64)
    found = dict(zip(FEATURES, domain.text_features(scores), strict=True))
    s, h = scores.surprisal.astype(np.float64), scores.entropy.astype(np.float64)
    levels = domain.levels.tolist()
    low, high = (domain.quantiles["surprisal"][levels.index(level)] for level in (0.25, 0.75))
    assert found["surprisal"] == pytest.approx(s.mean())
    assert found["entropy"] == pytest.approx(h.mean())
    assert found["low"] == pytest.approx((s < low).mean())
    assert found["high"] == pytest.approx((s > high).mean())
    assert found["pmi"] == pytest.approx((scores.marginal_surprisal - scores.surprisal).mean(), rel=1e-5)
    seen = [scores.token_ids[i] in scores.token_ids[max(0, i - 128) : i] for i in range(1, 64)]
    assert found["repetition"] == pytest.approx(np.mean(seen))
    # A surprisal's place among people's in its entropy bin, read off the profile's own quantiles.
    places = []
    for value, bin_ in zip(s, domain.bins.index(h), strict=True):
        known = domain.bins.surprisal[bin_]
        places.append(np.interp(value, [0, *known, 2 * known[-1]], [0, *domain.bins.surprisal_levels, 1]))
    assert found["deviation"] == pytest.approx(np.mean(places) - 0.5)
    assert found["spread"] == pytest.approx(np.mean(np.abs(np.array(places) - 0.5)) - 0.25)


def test_people_have_a_distance_of_about_one(domain):
    for n in (32, 64, 100, 128):
        assert np.mean([distance(domain, text(i, 128), n) for i in range(500, 560)]) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize(
    "other",
    [{"level": 0.5}, {"level": 1.6}, {"shift": 1.5}, {"pmi": -0.5}, {"ids": [1, 2, 3]}],
    ids=["too certain", "too surprising", "too uncertain", "of another prompt", "a loop"],
)
def test_every_kind_of_difference_is_far(other, domain):
    people = [distance(domain, text(i)) for i in range(500, 540)]
    others = [distance(domain, text(i, **other)) for i in range(500, 540)]
    assert np.quantile(others, 0.1) > np.quantile(people, 0.9)


def test_surprisal_at_the_wrong_entropies_is_far_though_both_means_are_human(domain):
    scores = text(600, 256)
    order = np.argsort(scores.entropy)
    shuffled = scores.surprisal.copy()
    # The least surprising tokens where people are uncertain, and the other way round.
    shuffled[order] = np.sort(scores.surprisal)[::-1]
    marginal = shuffled + (scores.marginal_surprisal - scores.surprisal)
    columns = {**scores.__dict__, "surprisal": shuffled, "marginal_surprisal": marginal}
    joint, means = ("deviation", "spread"), ("surprisal", "entropy", "low", "high", "pmi", "repetition")
    wrong = TokenScores(**columns)
    assert distance(domain, wrong, 256, means) == pytest.approx(distance(domain, scores, 256, means), rel=1e-3)
    assert distance(domain, wrong, 256, joint) > distance(domain, scores, 256, joint) + 5


def test_the_mean_itself_has_distance_zero(domain):
    for n in (20, 64, 300):
        mean, covariance = domain.texts.at(n)
        assert domain.texts.distance(mean, n) == pytest.approx(0)
        assert np.linalg.eigvalsh(covariance).min() > 0


def test_lengths_between_and_beyond(domain):
    reference = domain.texts
    middle, _ = reference.at(round(np.sqrt(32 * 64)))
    np.testing.assert_allclose(middle, (reference.mean[1] + reference.mean[2]) / 2, rtol=0.01, atol=0.01)
    np.testing.assert_array_equal(reference.at(5000)[0], reference.mean[-1])
    np.testing.assert_allclose(reference.at(8)[1], 2 * reference.covariance[0])
    assert reference.lengths.tolist() == list(LENGTHS)


def test_a_text_without_marginals_is_compared_by_the_rest(domain):
    scores = text(700, 64, pmi=None)
    others = [name for name in FEATURES if name != "pmi"]
    assert distance(domain, scores, 64) == pytest.approx(distance(domain, scores, 64, others))
    assert np.isnan(distance(domain, scores, 64, ["pmi"]))


def test_a_feature_that_does_not_vary_between_people_is_left_out():
    same = HumanProfile.fit({"creative": [text(i, ids=[1, 2, 3]) for i in range(40)]}, resamples=2).kind("creative")
    scores = text(700, 64)
    others = [name for name in FEATURES if name != "repetition"]
    assert distance(same, scores, 64) == pytest.approx(distance(same, scores, 64, others) * 1.0)
    assert same.texts is not None
    standardised = same.texts.standardised(same.text_features(scores), 64)
    assert np.isnan(standardised[FEATURES.index("repetition")])
    assert np.isfinite(standardised[:-1]).all()


def test_closeness_falls_with_the_distance_and_needs_a_few_tokens(domain):
    scores = text(700, 64)
    features = domain.text_features(scores)
    d2 = domain.texts.distance(features, 64)
    # 1.2774 is the third quartile of chi-squared over its eight degrees of freedom.
    assert domain.texts.closeness(features, 64) == pytest.approx(1 / (1 + max(0, d2 - 1.2774) / 4), rel=1e-4)
    assert domain.texts.closeness(features + 1, 64) < 0.5
    assert domain.texts.closeness(domain.texts.at(64)[0], 64) == 1
    assert domain.texts.closeness(features, 3) == 0


def test_to_and_from_json(fitted, domain, tmp_path):
    profile = replace(fitted, kinds={"creative": domain})
    profile.save(tmp_path / "p.json")
    again = HumanProfile.load(tmp_path / "p.json").kind("creative").texts
    for name in ("lengths", "n_texts", "mean", "covariance"):
        np.testing.assert_array_equal(getattr(again, name), getattr(domain.texts, name))


def test_few_texts_have_no_reference():
    profile = HumanProfile.fit({"creative": [text(i) for i in range(15)]}, resamples=2)
    assert profile.kind("creative").texts is None


def test_a_reference_that_does_not_fit_together_is_refused(domain):
    with pytest.raises(ValueError, match="do not fit together"):
        TextReference(domain.texts.lengths, domain.texts.n_texts, domain.texts.mean[:, :3], domain.texts.covariance)


@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m-instruct"])
def test_shipped_profiles_have_a_reference(name):
    profile = HumanProfile.load(name)
    for domain in profile.domains:
        assert profile.kind(domain).texts is not None
