"""Differences between two gaps: of two domains (other sources) or of two models (the same sources)."""

from dataclasses import dataclass

from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import Clusters, Group, Sources, column, interval
from ugap.statistics.significance import rank_sum, signed_rank


@dataclass(frozen=True)
class Contrast:
    """How much larger gap `a` is than gap `b`, in the measure's own unit.

    Args:
        n_sources (`tuple[int, int]`): Sources behind `a` and `b`; in a paired contrast the shared ones, twice.
        difference (`float`): Mean of `a` over its prefixes less mean of `b` over its prefixes.
        ci95 (`tuple[float, float]`): 95% interval of the difference; NaN where a side has a single source.
        p_value (`float`): Two-sided p of a rank test on per-source means; NaN with fewer than 5 sources on a side.
    """

    n_sources: tuple[int, int]
    difference: float
    ci95: tuple[float, float]
    p_value: float


def contrast_independent(
    gaps_a: ArrayLike,
    sources_a: Sources,
    gaps_b: ArrayLike,
    sources_b: Sources,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Contrast:
    """Contrast the gaps of two sets of disjoint sources, such as creative against functional.

    The sides are resampled independently (the interval is that of `paired_gap`, with the variances added); the p-value
    is that of the Mann-Whitney U test on per-source means.

    Args:
        gaps_a (`ArrayLike` of shape `(n_a,)`): Gap of every prefix of side `a`.
        sources_a (`Sequence[Hashable]` of length `n_a`): The source text of every prefix.
        gaps_b (`ArrayLike` of shape `(n_b,)`): Gap of every prefix of side `b`.
        sources_b (`Sequence[Hashable]` of length `n_b`): The source text of every prefix.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `Contrast`: Difference of the mean gaps, interval and p-value.

    Raises:
        ValueError: If a source is on both sides, lengths differ, a side is empty or a value is not finite.

    Example:
        >>> contrast_independent([1.0, 2.0], ["tale 1", "tale 2"], [0.5, 0.0], ["manual 1", "manual 2"]).difference
        1.25
    """
    a = Clusters.gather(column(gaps_a, "gaps_a"), sources_a, "sources_a")
    b = Clusters.gather(column(gaps_b, "gaps_b"), sources_b, "sources_b")
    on_a = set(a.sources)
    shared = next((source for source in b.sources if source in on_a), None)
    if shared is not None:
        raise ValueError(f"sources_b: {shared!r} is a source of both sides, which are then not independent")
    # Two groups: nothing pairs a source of one side with one of the other.
    groups = [Group([a], [1]), Group([b], [-1])]
    return Contrast(
        n_sources=(len(a.sources), len(b.sources)),
        difference=a.mean - b.mean,
        ci95=interval(groups, resamples=resamples, seed=seed),
        p_value=rank_sum(a.source_means, b.source_means),
    )


def contrast_paired(
    gaps_a: ArrayLike,
    sources_a: Sources,
    gaps_b: ArrayLike,
    sources_b: Sources,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> Contrast:
    """Contrast two gaps on the same sources, such as those of two models.

    The sides are joined by source (a source of one side alone is left out) and resampled together; the p-value is that
    of the signed-rank test on the per-source differences of means.

    Args:
        gaps_a (`ArrayLike` of shape `(n_a,)`): Gap of every prefix of side `a`.
        sources_a (`Sequence[Hashable]` of length `n_a`): The source text of every prefix.
        gaps_b (`ArrayLike` of shape `(n_b,)`): Gap of every prefix of side `b`.
        sources_b (`Sequence[Hashable]` of length `n_b`): The source text of every prefix.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `Contrast`: Difference of the mean gaps over the shared sources, interval and p-value.

    Raises:
        ValueError: If no source is shared, lengths differ, a side is empty or a value is not finite.

    Example:
        >>> contrast_paired([1.0, 2.0, 9.0], ["x", "y", "z"], [0.5, 0.0], ["y", "x"]).difference
        1.25
    """
    a = Clusters.gather(column(gaps_a, "gaps_a"), sources_a, "sources_a")
    b = Clusters.gather(column(gaps_b, "gaps_b"), sources_b, "sources_b")
    on_b = set(b.sources)
    # In one order on both sides, so that a difference cancels what a source does to both.
    shared = [source for source in a.sources if source in on_b]
    if not shared:
        raise ValueError("sources_b: no source is shared with sources_a")
    a, b = a.take(shared), b.take(shared)
    return Contrast(
        n_sources=(len(shared), len(shared)),
        difference=a.mean - b.mean,
        ci95=interval([Group([a, b], [1, -1])], resamples=resamples, seed=seed),
        p_value=signed_rank(a.source_means - b.source_means),
    )
