import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ugap.profile import CalibrationCurve, EntropyBins
from ugap.profile.calibration import MOST_BINS, TOKENS_PER_BIN, HumanTokens, figures, fit_calibration, pool


def human(h):
    """The curve to be found: below the scorer's entropy where it is certain, above it where it is not."""
    return 0.5 * h + 0.12 * h**2


def simulate(seed, n_texts, n_tokens=400, spread=0.2):
    """Entropy, surprisal, rank and text of tokens; every text has a level of its own (a factor of mean 1).

    Entropy has the 6 figures that a profile keeps, so a token lies on the same side of an edge before and after.
    """
    rng = np.random.default_rng(seed)
    text = np.repeat(np.arange(n_texts), n_tokens)
    entropy = figures(rng.gamma(2.0, 1.3, len(text)))
    level = rng.gamma(1 / spread**2, spread**2, n_texts)[text]
    surprisal = human(entropy) * level * rng.gamma(2.0, 0.5, len(text))
    return entropy, surprisal, np.ceil(np.exp(np.minimum(surprisal, 12))), text


def fit(sample, resamples=200, seed=0):
    tokens = HumanTokens(*sample)
    return fit_calibration(tokens, pool([tokens]), resamples=resamples, rng=np.random.default_rng(seed))


def curve_of(h, g):
    return CalibrationCurve(np.array(h), np.array(g), low=np.array(g), high=np.array(g))


def test_the_curve_that_made_the_tokens_is_found():
    curve, _ = fit(simulate(0, 200))
    assert len(curve.h) == MOST_BINS
    np.testing.assert_allclose(curve.g, human(curve.h), rtol=0.12, atol=0.02)
    grid = np.linspace(0.3, 8, 60)
    np.testing.assert_allclose(curve(grid), human(grid), rtol=0.12)


def test_the_band_covers_the_truth():
    covered = []
    for seed in range(12):
        curve, _ = fit(simulate(seed, 40))
        truth = human(curve.h)
        covered.append((curve.low <= truth) & (truth <= curve.high))
        assert (curve.low <= curve.g + 1e-9).mean() > 0.95
        assert (curve.g <= curve.high + 1e-9).mean() > 0.95
    assert 0.85 < np.mean(covered) < 0.995


def test_the_band_shrinks_with_texts_not_with_tokens():
    few, many = (fit(simulate(3, n))[0] for n in (20, 320))
    width = [np.mean((curve.high - curve.low) / human(curve.h)) for curve in (few, many)]
    assert width[1] < 0.4 * width[0]
    # Level differences between 20 texts remain however long the texts are.
    longer = fit(simulate(3, 20, n_tokens=4000))[0]
    assert np.mean((longer.high - longer.low) / human(longer.h)) > 0.5 * width[0]


def test_one_text_has_no_band():
    curve, _ = fit(simulate(0, 1, n_tokens=1000))
    assert np.isnan(curve.low).all()
    assert np.isnan(curve.high).all()
    assert np.isfinite(curve.g).all()


def test_a_text_that_alone_reaches_an_entropy_leaves_the_band_finite():
    entropy = np.concatenate([np.linspace(0, 1, 600), np.linspace(2, 3, 600)])
    curve, _ = fit((entropy, entropy, np.ones(1200), np.repeat([0, 1], 600)))
    assert np.isfinite([curve.low, curve.high]).all()
    assert (np.diff(curve.low) >= 0).all()


def test_a_fall_in_the_data_is_pooled_by_token():
    """Two bins whose means fall are pooled: 390 tokens at 2 nats and 210 at 1 nat make 1.65."""
    entropy = np.repeat([1.0, 3.0], [390, 210])
    curve, bins = fit((entropy, np.repeat([2.0, 1.0], [390, 210]), np.ones(600), np.arange(600) % 2))
    assert bins.n_tokens.tolist() == [390, 210]
    assert curve.h.tolist() == [1.0, 3.0]
    assert curve.g.tolist() == [1.65, 1.65]


@pytest.mark.parametrize("n_tokens", [1, 150, 450, 5_000, 40_000])
def test_bins_hold_about_200_tokens_or_more(n_tokens):
    entropy, surprisal, rank, _ = simulate(1, 1, n_tokens=n_tokens)
    _, bins = fit((entropy, surprisal, rank, np.zeros(n_tokens, dtype=int)))
    assert len(bins.n_tokens) == min(MOST_BINS, max(1, n_tokens // TOKENS_PER_BIN))
    assert bins.n_tokens.sum() == n_tokens
    assert bins.n_tokens.max() - bins.n_tokens.min() <= 2


def test_tokens_of_one_entropy_share_a_bin():
    entropy = np.concatenate([np.zeros(3000), np.ones(2999), [2.0]])
    curve, bins = fit((entropy, entropy, entropy + 1, np.arange(6000) % 3))
    assert curve.h[0] == 0
    assert (bins.n_tokens > 0).all()
    assert (bins.index([0.0, 1.0]) == [0, 1]).all()
    assert curve([0.0, 1.0])[0] == 0


def test_quantiles_of_a_bin_are_those_of_its_tokens():
    entropy, surprisal, rank, text = simulate(2, 30)
    _, bins = fit((entropy, surprisal, rank, text))
    for b in (0, 20, len(bins.n_tokens) - 1):
        mine = bins.index(entropy) == b
        assert mine.sum() == bins.n_tokens[b]
        np.testing.assert_allclose(bins.surprisal[b], np.quantile(surprisal[mine], bins.surprisal_levels), rtol=1e-5)
        np.testing.assert_allclose(bins.rank[b], np.quantile(rank[mine], bins.rank_levels), rtol=1e-5)


def test_between_below_and_above_the_knots():
    curve = curve_of([1.0, 2.0, 4.0], [0.5, 2.5, 3.0])
    entropy = [0.0, 0.5, 1.0, 1.5, 3.0, 4.0, 6.0]
    np.testing.assert_allclose(curve(entropy), [0.0, 0.25, 0.5, 1.5, 2.75, 3.0, 5.0])
    assert curve(3.0) == 2.75
    assert curve(-1e-7) == 0  # rounding may leave an entropy a little below zero
    assert np.isnan(curve([np.nan, 1.0])).tolist() == [True, False]
    assert curve(np.ones((2, 3, 4), dtype=np.float32)).shape == (2, 3, 4)


# Scores are float32: knots lie at least one float32 apart.
knots = st.lists(st.tuples(st.floats(0, 12, width=32), st.floats(0, 20, width=32)), min_size=1, max_size=20)


@given(knots, st.lists(st.floats(0, 30), min_size=2, max_size=40))
def test_the_curve_never_falls_and_is_never_negative(points, entropy):
    h, g = np.sort(np.array(points), axis=0).T
    curve = curve_of(h, g)
    values = curve(np.sort(entropy))
    assert (values >= 0).all()
    assert (np.diff(values) >= -1e-9).all()
    single = np.array([curve(value) for value in np.sort(entropy)])
    np.testing.assert_array_equal(values, single)
    beyond = curve(h[-1] + np.array([0.0, 2.5]))
    assert beyond[1] - beyond[0] == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("h", "g"),
    [([2.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [2.0, 1.0]), ([-1.0, 2.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 2.0]),
     ([1.0], [1.0, 2.0]), ([], [])],
)  # fmt: skip
def test_knots_that_are_no_curve(h, g):
    with pytest.raises(ValueError, match="calibration curve"):
        curve_of(h, g)


def test_bins_that_do_not_fit():
    level, column = np.array([0.5]), np.array([[1.0], [2.0]])

    def bins(edges, rank):
        return EntropyBins(np.array(edges), np.array([9.0, 9.0]), level, column, level, rank)

    assert bins([1.0], column).index([0.5, 1.0]).tolist() == [0, 1]
    with pytest.raises(ValueError, match="do not fit together"):
        bins([1.0, 2.0], column)
    with pytest.raises(ValueError, match="negative or not finite"):
        bins([1.0], np.array([[1.0], [np.inf]]))


def test_figures():
    assert figures([1234567.0, 0.000123456789, 0.0, -1.5]).tolist() == [1234570.0, 0.000123457, 0.0, -1.5]
    assert np.isnan(figures(np.nan))


def kinds(sizes, ratios, seed=0):
    """Tokens of kinds whose curves are the common one times a ratio."""
    out = []
    for number, (n_texts, ratio) in enumerate(zip(sizes, ratios, strict=True)):
        entropy, surprisal, rank, text = simulate(seed + number, n_texts, n_tokens=200)
        out.append(HumanTokens(entropy, surprisal * ratio, rank, text))
    return out


def test_a_kind_of_few_texts_is_held_by_the_others():
    """Two texts alone make a wild curve; pooled it has the shape of all kinds and the mean of the two."""
    ratios = [0.8, 0.9, 1.0, 1.1, 1.2, 1.0]
    errors: dict[str, list[float]] = {"alone": [], "pooled": []}
    for seed in range(0, 60, 10):
        columns = kinds([100] * 5 + [2], ratios, seed)
        for name, pooling in (("alone", pool(columns[-1:])), ("pooled", pool(columns))):
            curve, _ = fit_calibration(columns[-1], pooling, resamples=2, rng=np.random.default_rng(0))
            grid = np.linspace(0.5, 6, 20)
            ratio = curve(grid) / human(grid)  # the level of two texts is their own, pooled or not
            errors[name].append(np.abs(ratio / ratio.mean() - 1).mean())
    assert np.mean(errors["pooled"]) < 0.6 * np.mean(errors["alone"])


def test_a_kind_of_many_texts_keeps_its_own_level_and_mean():
    columns = kinds([60, 60, 60], [0.7, 1.0, 1.3])
    pooling = pool(columns)
    assert 0.15 < pooling.spread < 0.45
    for tokens, ratio in zip(columns, (0.7, 1.0, 1.3), strict=True):
        curve, bins = fit_calibration(tokens, pooling, resamples=2, rng=np.random.default_rng(0))
        assert curve(tokens.entropy).mean() == pytest.approx(tokens.surprisal.mean(), rel=0.02)
        np.testing.assert_allclose(curve(np.linspace(1, 6, 9)), ratio * human(np.linspace(1, 6, 9)), rtol=0.15)
        assert bins.edges.tolist() == pooling.edges.tolist()


def test_every_kind_counts_the_same_in_the_common_curve():
    """A kind with twenty times the texts does not set it: the geometric middle of 0.5 and 1.5 is not 1.5."""
    few, many = kinds([10, 200], [0.5, 1.5])
    pooling = pool([few, many])
    middle = pooling.g[(pooling.h > 1) & (pooling.h < 5)] / human(pooling.h[(pooling.h > 1) & (pooling.h < 5)])
    np.testing.assert_allclose(middle, 1.0, atol=0.15)
