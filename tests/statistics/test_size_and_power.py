"""Do the p-values keep their level, and how often do they find what is there? By simulation.

`python -m pytest -m slow -s tests/statistics/test_size_and_power.py` prints the tables of `docs/results/intervals.md`.
"""

import numpy as np
import pytest
from scipy import stats

from ugap.statistics import contrast_independent, false_discovery, holm, paired_gap, step_down
from ugap.statistics.gap import gap_groups

SOURCES, CELLS, MEASURES = 23, 32, 7  # two domains of 23 source texts, 16 cells each: a table of 224 rows


def draw(rng, kind, n):
    """Values of mean zero."""
    if kind == "normal":
        return rng.standard_normal(n)
    if kind == "skewed":
        return rng.exponential(size=n) - 1
    return np.exp(rng.standard_normal(n)) - np.exp(0.5)


def rejections(kind, n_sources, trials, resamples):
    """Share of samples of mean zero in which the signed-rank test, and ours, rejects at 0.05."""
    rng = np.random.default_rng(1)
    rejected = np.zeros(2)
    for seed in range(trials):
        x = draw(rng, kind, n_sources)
        own = paired_gap(x, np.zeros(n_sources), range(n_sources), resamples=resamples, seed=seed).p_value
        rejected += np.array([stats.wilcoxon(x).pvalue, own]) < 0.05
    return rejected / trials


def contrast_rejections(n_a, n_b, trials, resamples):
    """The same for two sides of equal mean, the first with three times the spread: Mann-Whitney, and ours."""
    rng = np.random.default_rng(2)
    rejected = np.zeros(2)
    for seed in range(trials):
        a, b = 3 * rng.standard_normal(n_a), rng.standard_normal(n_b)
        own = contrast_independent(a, range(n_a), b, range(-n_b, 0), resamples=resamples, seed=seed).p_value
        rejected += np.array([stats.mannwhitneyu(a, b).pvalue, own]) < 0.05
    return rejected / trials


def table(rng, effect):
    """Gaps of NLL by cell, and of the other measures: texts are shared by the cells of a domain, cells by measures.

    In the first half of the cells of each domain the gap has the size `effect` (d_z), in the others it is zero.
    """
    cells = []
    for domain in range(2):
        human = rng.standard_normal(SOURCES)
        for cell in range(CELLS // 2):
            noise = (human + rng.standard_normal(SOURCES)) / np.sqrt(2)
            mean = effect if cell < CELLS // 4 else 0.0
            rows = [mean + noise]
            for _ in range(MEASURES - 1):
                rows.append(mean + np.sqrt(0.8) * noise + np.sqrt(0.2) * rng.standard_normal(SOURCES))
            cells.append((domain, mean != 0, rows))
    return cells


def power(effect, trials, resamples, seed=0):
    """By correction: power over the true gaps of NLL, and share of tables that find one where there is none."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, bool]]] = {}
    for trial in range(trials):
        cells = table(rng, effect)
        true = np.array([there for _, there, _ in cells])
        places = [[(domain, i) for i in range(SOURCES)] for domain, _, _ in cells]
        nll = [rows[0] for _, _, rows in cells]
        tests = [gap_groups(x, source) for x, source in zip(nll, places, strict=True)]
        p = [
            paired_gap(x, np.zeros(SOURCES), source, resamples=resamples, seed=trial).p_value
            for x, source in zip(nll, places, strict=True)
        ]
        ranked = [stats.wilcoxon(x).pvalue for _, _, rows in cells for x in rows]
        by = {
            "Holm over all rows, signed-rank": holm(ranked).reshape(CELLS, MEASURES)[:, 0],
            "Holm over the rows of NLL, signed-rank": holm(np.reshape(ranked, (CELLS, MEASURES))[:, 0]),
            "max-T over the rows of NLL": step_down(tests, p, flips=resamples, seed=trial),
            "Benjamini-Hochberg over the rows of NLL": false_discovery(tests, p),
        }
        for name, adjusted in by.items():
            told = adjusted < 0.05
            found.setdefault(name, []).append((told[true].mean() if true.any() else np.nan, told[~true].any()))
    return {name: tuple(np.mean(values, axis=0)) for name, values in found.items()}


@pytest.mark.parametrize(("kind", "most"), [("normal", 0.09), ("skewed", 0.1), ("lognormal", 0.14)])
def test_the_level_is_kept_where_a_rank_test_does_not_keep_it(kind, most):
    of_ranks, own = rejections(kind, 46, trials=250, resamples=300)
    assert 0.015 < own < most
    if kind != "normal":
        assert of_ranks > 0.15
        assert own < of_ranks / 2


def test_the_level_of_a_contrast_is_kept_with_unequal_spread():
    of_ranks, own = contrast_rejections(20, 60, trials=250, resamples=300)
    assert of_ranks > 0.08
    assert own < 0.08


def test_the_family_finds_more_than_holm():
    found = power(0.8, trials=10, resamples=800)
    (ours, errs), (holms, _) = found["max-T over the rows of NLL"], found["Holm over all rows, signed-rank"]
    assert ours > holms + 0.15
    assert errs < 0.3


@pytest.mark.slow
def test_size_and_power_in_full():
    print()
    for n_sources in (16, 46):
        for kind in ("normal", "skewed", "lognormal"):
            of_ranks, own = rejections(kind, n_sources, trials=2000, resamples=1000)
            print(f"{kind}, {n_sources} sources: signed-rank {of_ranks:.1%}, bootstrap-t {own:.1%}")
            assert own < (0.14 if kind == "lognormal" else 0.09)
    for n_a, n_b in ((20, 60), (46, 46)):
        of_ranks, own = contrast_rejections(n_a, n_b, trials=2000, resamples=1000)
        print(f"unequal spread, {n_a} and {n_b} sources: Mann-Whitney {of_ranks:.1%}, bootstrap-t {own:.1%}")
        assert 0.03 < own < 0.07
    for effect in (0.8, 0.0):
        for name, (finds, errs) in power(effect, trials=300, resamples=2000, seed=3).items():
            print(f"d_z {effect}: {name}: power {finds:.2f}, tables with a false finding {errs:.1%}")
            assert errs < 0.09 or "Benjamini" in name
