"""Differences between two gaps: of two domains (other sources) or of two models (the same sources)."""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import Clusters, Group, Sources, column, interval_and_p


@dataclass(frozen=True)
class Contrast:
    """How much larger gap `a` is than gap `b`, in the measure's own unit.

    Args:
        n_sources (`tuple[int, int]`): Sources behind `a` and `b`; in a paired contrast the shared ones, twice.
        difference (`float`): Mean of `a` over its prefixes less mean of `b` over its prefixes.
        ci95 (`tuple[float, float]`): 95% interval of the difference; NaN where a side has a single source.
        p_value (`float`): Two-sided p of a difference of 0, by the bootstrap that makes the interval: below 0.05
            exactly where the interval leaves 0 out. NaN where a side has a single source.
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

    The sides are resampled independently: interval and p-value are those of `paired_gap`, with the variances added.

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
    groups = independent_groups(gaps_a, sources_a, gaps_b, sources_b)
    return _contrast(groups, resamples, seed)


def independent_groups(gaps_a: ArrayLike, sources_a: Sources, gaps_b: ArrayLike, sources_b: Sources) -> list[Group]:
    """The sources behind the contrast of two independent sides; arguments and errors of `contrast_independent`."""
    a = Clusters.gather(column(gaps_a, "gaps_a"), sources_a, "sources_a")
    b = Clusters.gather(column(gaps_b, "gaps_b"), sources_b, "sources_b")
    on_a = set(a.sources)
    shared = next((source for source in b.sources if source in on_a), None)
    if shared is not None:
        raise ValueError(f"sources_b: {shared!r} is a source of both sides, which are then not independent")
    # Two groups: nothing pairs a source of one side with one of the other.
    return [Group([a], [1]), Group([b], [-1])]


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

    The sides are joined by source (a source of one side alone is left out) and resampled together.

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
    return _contrast(paired_groups(gaps_a, sources_a, gaps_b, sources_b), resamples, seed)


def paired_groups(gaps_a: ArrayLike, sources_a: Sources, gaps_b: ArrayLike, sources_b: Sources) -> list[Group]:
    """The sources behind the contrast of two sides that share them; arguments and errors of `contrast_paired`."""
    a = Clusters.gather(column(gaps_a, "gaps_a"), sources_a, "sources_a")
    b = Clusters.gather(column(gaps_b, "gaps_b"), sources_b, "sources_b")
    on_b = set(b.sources)
    # In one order on both sides, so that a difference cancels what a source does to both.
    shared = [source for source in a.sources if source in on_b]
    if not shared:
        raise ValueError("sources_b: no source is shared with sources_a")
    return [Group([a.take(shared), b.take(shared)], [1, -1])]


def _contrast(groups: Sequence[Group], resamples: int, seed: int) -> Contrast:
    ci95, p_value = interval_and_p(groups, resamples=resamples, seed=seed)
    return Contrast(
        n_sources=(groups[0].n_sources, groups[-1].n_sources),  # one group holds both sides, or each has its own
        difference=sum(group.estimate for group in groups),
        ci95=ci95,
        p_value=p_value,
    )
