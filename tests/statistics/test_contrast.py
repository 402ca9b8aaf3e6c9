import numpy as np
import pytest

from ugap.statistics import contrast_independent, contrast_paired, paired_gap

pytestmark = pytest.mark.filterwarnings("error")


def side(seed, n_sources, prefix, mean=0.0):
    rng = np.random.default_rng(seed)
    sources = [f"{prefix} {i}" for i in np.repeat(np.arange(n_sources), rng.integers(1, 5, n_sources))]
    return rng.normal(mean, 0.5, len(sources)), sources


def test_independent_contrast():
    (a, sources_a), (b, sources_b) = side(0, 20, "tale", 1.0), side(1, 30, "manual")
    contrast = contrast_independent(a, sources_a, b, sources_b)
    assert contrast.n_sources == (20, 30)
    assert contrast.difference == pytest.approx(a.mean() - b.mean(), rel=1e-12)
    low, high = contrast.ci95
    assert 0 < low < contrast.difference < high
    assert contrast.p_value == pytest.approx(1 / 10_001)  # no resample reaches it
    widths = [np.ptp(paired_gap(x, np.zeros_like(x), s).ci95) for x, s in ((a, sources_a), (b, sources_b))]
    assert high - low == pytest.approx(np.hypot(*widths), rel=0.1)


def test_independent_contrast_changes_its_sign_with_the_sides():
    (a, sources_a), (b, sources_b) = side(0, 9, "tale", 1.0), side(1, 9, "manual")
    one = contrast_independent(a, sources_a, b, sources_b, resamples=20_000)
    other = contrast_independent(b, sources_b, a, sources_a, resamples=20_000)
    assert other.difference == -one.difference
    assert other.ci95 == pytest.approx((-one.ci95[1], -one.ci95[0]), rel=0.05)
    assert other.p_value == pytest.approx(one.p_value, rel=0.1, abs=2e-4)


def test_paired_contrast_joins_by_source():
    a, sources_a = side(0, 15, "tale")
    shared = [source for source in sources_a if source != "tale 3"]
    kept = np.array([source != "tale 3" for source in sources_a])
    b = (a - 0.25)[kept]
    order = np.random.default_rng(2).permutation(len(b))
    contrast = contrast_paired(a, sources_a, b[order], [shared[i] for i in order])
    assert contrast.n_sources == (14, 14)
    assert contrast.difference == pytest.approx(0.25)
    assert contrast.ci95 == pytest.approx((0.25, 0.25), abs=1e-9)  # the same noise on both sides cancels


def test_paired_contrast_equals_the_gap_of_the_differences_where_prefixes_agree():
    a, sources = side(0, 15, "tale")
    b = a + np.random.default_rng(9).normal(0.2, 0.1, len(a))
    contrast = contrast_paired(a, sources, b, sources, resamples=4000, seed=5)
    gap = paired_gap(a, b, sources, resamples=4000, seed=5)
    assert contrast.difference == pytest.approx(gap.gap)
    assert contrast.ci95 == pytest.approx(gap.ci95, rel=0.05)
    assert contrast.p_value == pytest.approx(gap.p_value, abs=1e-3)
    independent = contrast_independent(a, sources, b, [f"other {source}" for source in sources])
    assert np.ptp(contrast.ci95) < 0.5 * np.ptp(independent.ci95)


def test_same_seed_same_interval():
    (a, sources_a), (b, sources_b) = side(0, 9, "tale"), side(1, 9, "manual")
    one = contrast_independent(a, sources_a, b, sources_b, resamples=300, seed=1)
    order = np.random.default_rng(0).permutation(len(a))
    shuffled = contrast_independent(a[order], [sources_a[i] for i in order], b, sources_b, resamples=300, seed=1)
    assert one == shuffled
    assert one != contrast_independent(a, sources_a, b, sources_b, resamples=300, seed=2)


def test_a_single_source_has_no_interval():
    b, sources_b = side(1, 9, "manual")
    contrast = contrast_independent([1.0, 2.0], ["tale", "tale"], b, sources_b)
    assert np.isnan([*contrast.ci95, contrast.p_value]).all()
    contrast = contrast_paired([1.0, 2.0], ["tale", "tale"], [1.0], ["tale"])
    assert contrast.difference == 0.5
    assert np.isnan([*contrast.ci95, contrast.p_value]).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"^sources_b: 'y' is a source of both sides"):
        contrast_independent([1.0, 2.0], "xy", [1.0], "y")
    with pytest.raises(ValueError, match=r"^sources_b: no source is shared"):
        contrast_paired([1.0, 2.0], "xy", [1.0], "z")
    with pytest.raises(ValueError, match=r"^gaps_b: .* nan"):
        contrast_paired([1.0], "x", [np.nan], "x")
    with pytest.raises(ValueError, match=r"^sources_a: 2 sources for 1"):
        contrast_independent([1.0], "xy", [1.0], "z")
