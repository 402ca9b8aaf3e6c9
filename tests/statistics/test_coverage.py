"""Do the 95% intervals hold the truth 95% of the time? By simulation, with few, unequal and ill-behaved sources.

`python -m pytest -m slow -s tests/statistics/test_coverage.py` prints the coverage of `paired_gap` beside that of the
constructions that it was chosen over, and the median length of each interval.
"""

import numpy as np
import pytest
from scipy import stats

from ugap.statistics import contrast_independent, contrast_paired, paired_gap
from ugap.study.contrasts import gap_test

SIZES = {"equal": [6], "unequal": [2, 3, 4, 6, 8], "very unequal": [1, 2, 3, 5, 8, 16]}
# Very unequal: one source in six holds nearly half of the prefixes, so the mean rests on about half as many sources.
LOWEST = {"equal": 0.92, "unequal": 0.92, "very unequal": 0.89}


def noise(rng, kind, shape):
    """Zero mean and unit variance."""
    if kind == "normal":
        return rng.standard_normal(shape)
    if kind == "skewed":
        return rng.exponential(size=shape) - 1
    return rng.standard_t(3, shape) / np.sqrt(3)  # heavy tails


def simulate(rng, kind, n_sources, sizes):
    """Gaps of mean zero, correlated within their source (intraclass correlation 0.5), and their sources."""
    counts = np.resize(SIZES[sizes], n_sources)
    sources = np.repeat(np.arange(n_sources), counts)
    return noise(rng, kind, n_sources)[sources] + noise(rng, kind, len(sources)), sources


def others(gaps, sources, weights):
    """The percentile, BCa and equal-tailed bootstrap-t intervals over sources, by name."""
    sums, counts = np.bincount(sources, gaps), np.bincount(sources)
    n, mean = len(counts), gaps.mean()
    replicates = weights @ sums / (weights @ counts)
    residuals = sums - mean * counts
    error = np.sqrt(n / (n - 1) * (residuals**2).sum()) / len(gaps)
    squares = np.array([weights @ x for x in (sums**2, sums * counts, counts**2)])
    spread = squares[0] - 2 * replicates * squares[1] + replicates**2 * squares[2]
    t = (replicates - mean) / (np.sqrt(n / (n - 1) * np.maximum(spread, 1e-30)) / (weights @ counts))
    t_low, t_high = np.quantile(t, [0.025, 0.975], method="inverted_cdf")
    influence = mean - (sums.sum() - sums) / (counts.sum() - counts)
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = stats.norm.ppf(np.clip((replicates < mean).mean(), 1e-3, 1 - 1e-3))
    z = bias + stats.norm.ppf([0.025, 0.975])
    levels = stats.norm.cdf(bias + z / np.maximum(1 - acceleration * z, 1e-9))
    return {
        "percentile": np.quantile(replicates, [0.025, 0.975]),
        "BCa": np.quantile(replicates, levels),
        "equal-tailed t": np.array([mean - t_high * error, mean - t_low * error]),
    }


def covers(interval, truth=0.0):
    return interval[0] <= truth <= interval[1]


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_coverage_with_eight_sources(kind):
    rng = np.random.default_rng(3)
    hits = []
    for seed in range(600):
        gaps, sources = simulate(rng, kind, 8, "unequal")
        hits.append(covers(paired_gap(gaps, np.zeros_like(gaps), sources, resamples=400, seed=seed).ci95))
    assert 0.905 < np.mean(hits) < 0.98  # 95%, give or take the error of 600 trials and the toll of skew


def test_ignoring_the_sources_would_be_wrong():
    rng = np.random.default_rng(4)
    hits: dict[str, list[bool]] = {"by source": [], "by prefix": []}
    for seed in range(200):
        gaps, sources = simulate(rng, "normal", 12, "equal")
        zeros = np.zeros_like(gaps)
        hits["by source"].append(covers(paired_gap(gaps, zeros, sources, resamples=300, seed=seed).ci95))
        hits["by prefix"].append(covers(paired_gap(gaps, zeros, range(len(gaps)), resamples=300, seed=seed).ci95))
    assert np.mean(hits["by source"]) > 0.9
    assert np.mean(hits["by prefix"]) < 0.8


LOG_MEANS, SIGMAS = (3.0, 2.2), (1.0, 0.4)  # of log perplexity: people, and a model at a low temperature


def perplexities(rng, n_sources):
    """Lognormal perplexities, correlated within their source, of people and of a model whose texts are more alike."""
    sources = np.repeat(np.arange(n_sources), 3)
    shared = rng.standard_normal(n_sources)[sources]
    human, model = (
        np.exp(mean + sigma * (shared + rng.standard_normal(len(sources))) / np.sqrt(2))
        for mean, sigma in zip(LOG_MEANS, SIGMAS, strict=True)
    )
    return human, model, sources


def covered_perplexity(n_sources, trials, resamples):
    """How often the intervals of the log ratio, and of the difference of arithmetic means, hold the truth."""
    rng = np.random.default_rng(5)
    # The mean of a lognormal is exp(mean + sigma^2 / 2).
    human, model = np.exp(np.array(LOG_MEANS) + np.array(SIGMAS) ** 2 / 2)
    ratio, difference = LOG_MEANS[0] - LOG_MEANS[1], human - model
    hits = np.zeros(2)
    for seed in range(trials):
        human, model, sources = perplexities(rng, n_sources)
        options = {"resamples": resamples, "seed": seed}
        test = gap_test({"measure": "ppl"}, human, model, [str(source) for source in sources], **options)
        assert test is not None
        hits[0] += covers(test.row["ci95"], truth=ratio)
        hits[1] += covers(paired_gap(human, model, sources, **options).ci95, truth=difference)
    return hits / trials


def test_the_interval_of_perplexity_is_of_the_log_ratio():
    """An arithmetic mean of lognormal perplexities rests on a few texts, and its interval misses too often."""
    log_ratio, difference = covered_perplexity(16, trials=300, resamples=300)
    assert 0.91 < log_ratio < 0.985
    assert difference < 0.93


@pytest.mark.slow
@pytest.mark.parametrize("n_sources", [8, 16, 40])
def test_coverage_of_perplexity(n_sources):
    log_ratio, difference = covered_perplexity(n_sources, trials=2000, resamples=1000)
    print(f"\nperplexity, {n_sources} sources: log ratio {log_ratio:.1%}, difference of means {difference:.1%}")
    assert 0.93 < log_ratio < 0.975


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("n_sources", [8, 16, 40])
@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy-tailed"])
def test_coverage(kind, n_sources, sizes):
    rng = np.random.default_rng(11)
    trials = 2000
    hits: dict[str, int] = {}
    lengths: dict[str, list[float]] = {}
    for seed in range(trials):
        gaps, sources = simulate(rng, kind, n_sources, sizes)
        weights = rng.multinomial(n_sources, np.full(n_sources, 1 / n_sources), size=1000).astype(float)
        intervals = {"paired_gap": paired_gap(gaps, np.zeros_like(gaps), sources, resamples=1000, seed=seed).ci95}
        intervals.update(others(gaps, sources, weights))
        for name, interval in intervals.items():
            hits[name] = hits.get(name, 0) + covers(interval)
            lengths.setdefault(name, []).append(interval[1] - interval[0])
    row = "  ".join(f"{name} {100 * hits[name] / trials:.1f}% ({np.median(lengths[name]):.2f})" for name in hits)
    print(f"\n{kind}, {n_sources} sources, {sizes}: {row}")
    assert LOWEST[sizes] <= hits["paired_gap"] / trials <= 0.98
    assert hits["paired_gap"] >= hits["percentile"]


@pytest.mark.slow
@pytest.mark.parametrize("n_sources", [8, 16, 40])
@pytest.mark.parametrize("kind", ["normal", "skewed", "heavy-tailed"])
def test_coverage_of_contrasts(kind, n_sources):
    rng = np.random.default_rng(12)
    trials = 1000
    hits = np.zeros(2)
    for seed in range(trials):
        a, sources_a = simulate(rng, kind, n_sources, "unequal")
        b, sources_b = simulate(rng, kind, 2 * n_sources, "equal")
        hits[0] += covers(contrast_independent(a, sources_a, b, -1 - sources_b, resamples=1000, seed=seed).ci95)
        twin = a + noise(rng, kind, len(a)) + 1
        hits[1] += covers(contrast_paired(twin, sources_a, a, sources_a, resamples=1000, seed=seed).ci95, truth=1.0)
    print(f"\n{kind}, {n_sources} sources: independent {hits[0] / trials:.1%}, paired {hits[1] / trials:.1%}")
    assert (hits / trials > 0.915).all()
    assert (hits / trials < 0.985).all()
