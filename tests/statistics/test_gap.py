import itertools

import numpy as np
import pytest
from scipy import stats

from ugap.statistics import bootstrap, paired_gap

pytestmark = pytest.mark.filterwarnings("error")


def example(seed=0, n_sources=12):
    rng = np.random.default_rng(seed)
    sources = [f"tale {i}" for i in np.repeat(np.arange(n_sources), rng.integers(1, 6, n_sources))]
    model = rng.normal(3.0, 0.4, len(sources))
    return model + rng.normal(0.4, 0.3, len(sources)), model, sources


def by_source(values, sources):
    pairs = list(zip(values, sources, strict=True))
    return np.array([np.mean([v for v, s in pairs if s == name]) for name in dict.fromkeys(sources)])


def test_point_estimates():
    human, model, sources = example()
    estimate = paired_gap(human, model, sources)
    differences = by_source(human - model, sources)
    assert (estimate.n, estimate.n_sources) == (len(sources), 12)
    assert estimate.human == pytest.approx(human.mean(), rel=1e-12)
    assert estimate.model_value == pytest.approx(model.mean(), rel=1e-12)
    assert estimate.gap == pytest.approx((human - model).mean(), rel=1e-12)
    assert estimate.ratio == pytest.approx(human.mean() / model.mean(), rel=1e-12)
    assert estimate.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1), rel=1e-12)


def test_interval_against_an_exhaustive_bootstrap():
    """Five sources have 5^5 resamples: the interval from all of them, each jackknife done by leaving sources out."""
    gaps = np.array([0.2, 1.0, -0.3, 0.8, 0.5, 1.9, 0.1, 0.6])
    sources = np.array([0, 0, 1, 2, 2, 2, 3, 4])

    def jackknife(drawn):
        pieces = [gaps[sources == source] for source in drawn]
        mean = np.concatenate(pieces).mean()
        left_out = [np.concatenate(pieces[:i] + pieces[i + 1 :]).mean() for i in range(5)]
        return mean, np.sqrt(4 / 5 * ((np.array(left_out) - mean) ** 2).sum())

    mean, error = jackknife(range(5))
    t = []
    for drawn in itertools.product(range(5), repeat=5):
        shifted, spread = jackknife(drawn)
        t.append(abs(shifted - mean) / spread if spread > 1e-12 else np.inf)
    critical = np.quantile(t, 0.95, method="inverted_cdf")
    estimate = paired_gap(gaps, np.zeros(8), sources, resamples=200_000, seed=1)
    assert estimate.p_value == pytest.approx(np.mean(np.array(t) >= mean / error), rel=0.02)
    low, high = estimate.ci95
    assert (high + low) / 2 == pytest.approx(mean)
    assert (high - low) / 2 == pytest.approx(critical * error, rel=0.02)


def test_same_seed_same_interval_in_any_order_of_rows():
    human, model, sources = example()
    order = np.random.default_rng(5).permutation(len(sources))
    shuffled = paired_gap(human[order], model[order], [sources[i] for i in order], resamples=500, seed=3)
    assert shuffled.ci95 == paired_gap(human, model, sources, resamples=500, seed=3).ci95
    assert shuffled.human == paired_gap(human, model, sources, resamples=500, seed=3).human
    assert shuffled.ci95 != paired_gap(human, model, sources, resamples=500, seed=4).ci95


def test_interval_does_not_depend_on_the_chunk(monkeypatch):
    human, model, sources = example()
    whole = paired_gap(human, model, sources, resamples=500, seed=3)
    monkeypatch.setattr(bootstrap, "_CHUNK_CELLS", 37)
    assert paired_gap(human, model, sources, resamples=500, seed=3) == whole


def test_interval_narrows_with_sources_not_with_copies_of_a_prefix():
    human, model, sources = example(n_sources=20)
    low, high = paired_gap(human, model, sources, resamples=2000).ci95
    thrice = paired_gap(np.tile(human, 3), np.tile(model, 3), sources * 3, resamples=2000).ci95
    assert thrice == pytest.approx((low, high), abs=1e-9)
    others = [f"{i} {source}" for i in range(3) for source in sources]
    narrow = paired_gap(np.tile(human, 3), np.tile(model, 3), others, resamples=2000).ci95
    assert narrow[1] - narrow[0] < 0.7 * (high - low)


def test_interval_scales_and_shifts_with_the_gap():
    human, model, sources = example()
    low, high = paired_gap(human, model, sources, resamples=500).ci95
    assert paired_gap(10 * human, 10 * model, sources, resamples=500).ci95 == pytest.approx((10 * low, 10 * high))
    assert paired_gap(human + 1e6, model, sources, resamples=500).ci95 == pytest.approx((low + 1e6, high + 1e6))


def test_all_differences_zero():
    values = np.linspace(1, 2, 12)
    estimate = paired_gap(values, values, np.arange(12) // 2)
    assert (estimate.gap, estimate.ci95, estimate.effect_size, estimate.p_value) == (0, (0, 0), 0, 1)


def test_a_constant_gap_has_no_width():
    estimate = paired_gap(np.linspace(1, 2, 12) + 0.3, np.linspace(1, 2, 12), np.arange(12) // 2)
    assert estimate.ci95 == pytest.approx((0.3, 0.3))
    assert np.isnan(estimate.effect_size)
    assert estimate.p_value == 2 / 2**6  # six sources of one sign


@pytest.mark.parametrize("n_sources", [2, 4, 6, 12])
@pytest.mark.parametrize("resamples", [1, 19, 20, 100, 399])
def test_p_is_below_the_level_where_the_interval_leaves_zero_out(n_sources, resamples):
    rng = np.random.default_rng(n_sources)
    for seed in range(40):
        gaps = rng.normal(2 / np.sqrt(n_sources), 1, n_sources)
        found = paired_gap(gaps, np.zeros(n_sources), range(n_sources), resamples=resamples, seed=seed)
        assert (found.p_value < 0.05) == (found.ci95[0] > 0 or found.ci95[1] < 0)


def test_a_single_source_has_no_interval():
    estimate = paired_gap([3.0, 4.0], [2.0, 2.0], ["a", "a"])
    assert estimate.gap == 1.5
    assert np.isnan([*estimate.ci95, estimate.effect_size, estimate.p_value]).all()


@pytest.mark.parametrize("n_sources", [2, 3, 4])
def test_few_sources_get_students_interval(n_sources):
    gaps = np.array([0.1, 0.5, 0.7, 1.2])[:n_sources]
    estimate = paired_gap(gaps, np.zeros(n_sources), range(n_sources))
    assert estimate.ci95 == pytest.approx(stats.t.interval(0.95, n_sources - 1, gaps.mean(), stats.sem(gaps)))
    assert estimate.p_value == pytest.approx(stats.ttest_1samp(gaps, 0).pvalue)


def test_one_source_that_differs_gives_a_finite_interval():
    gaps = np.array([0.0] * 9 + [5.0])
    low, high = paired_gap(gaps, np.zeros(10), range(10)).ci95
    assert low < 0 < high
    assert np.isfinite([low, high]).all()


def test_a_source_as_large_as_a_whole_resample():
    """Five draws of one-prefix sources are as many prefixes as the large source has, which was not drawn."""
    gaps = np.array([0.3, 0.5, 0.2, 0.9, 0.4, 1.0, 0.1, -0.2, 0.6])
    low, high = paired_gap(gaps, np.zeros(9), [0, 0, 0, 0, 0, 1, 2, 3, 4]).ci95
    assert low < gaps.mean() < high
    assert np.isfinite([low, high]).all()


def test_ratio_to_zero_is_nan():
    assert np.isnan(paired_gap([1.0, 2.0], [0.0, 0.0], [0, 1]).ratio)


@pytest.mark.parametrize(
    ("human", "model", "sources", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], "ab", "^human: .*position 1 is nan"),
        ([1.0, 2.0], [np.inf, 2.0], "ab", "^model: .*position 0 is inf"),
        ([1.0, 2.0], [1.0], "ab", "^model: 1 values for 2"),
        ([1.0, 2.0], [1.0, 2.0], "abc", "^sources: 3 sources for 2"),
        ([], [], "", "^human: no values"),
        ([[1.0]], [[1.0]], "a", "^human: .*shape"),
    ],
)
def test_bad_input(human, model, sources, message):
    with pytest.raises(ValueError, match=message):
        paired_gap(human, model, sources)


def test_resamples_must_be_positive():
    with pytest.raises(ValueError, match="resamples"):
        paired_gap([1.0], [2.0], "a", resamples=0)
