"""The gap of one measure: human less model, paired by prefix, with sources as the independent units."""

import math
from dataclasses import dataclass

from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import Clusters, Group, Sources, column, interval_and_p
from ugap.statistics.significance import standardised_mean


@dataclass(frozen=True)
class GapEstimate:
    """How far human text lies above model text in one measure, in the measure's own unit.

    Args:
        n (`int`): Prefixes.
        n_sources (`int`): Source texts that the prefixes were cut from.
        human (`float`): Mean over prefixes of the human text's value.
        model_value (`float`): Mean over prefixes of the model text's value.
        gap (`float`): `human - model_value`.
        ratio (`float`): `human / model_value`; NaN where `model_value` is zero.
        ci95 (`tuple[float, float]`): 95% interval of the gap; NaN for a single source.
        effect_size (`float`): Cohen's d_z of the per-source mean differences; NaN for a single source and where they
            have no spread.
        p_value (`float`): Two-sided p of a gap of 0, by the bootstrap that makes the interval: below 0.05 exactly where
            the interval leaves 0 out. NaN for a single source.
    """

    n: int
    n_sources: int
    human: float
    model_value: float
    gap: float
    ratio: float
    ci95: tuple[float, float]
    effect_size: float
    p_value: float


def paired_gap(
    human: ArrayLike, model: ArrayLike, sources: Sources, *, resamples: int = 10_000, seed: int = 0
) -> GapEstimate:
    """Estimate the gap `human - model` of one measure.

    The 95% interval and the p-value are of a symmetric bootstrap-t that resamples whole sources (see
    `ugap.statistics.bootstrap`).

    Its coverage with 8, 16 and 40 sources and normal, skewed (exponential) and heavy-tailed (Student's t, 3 degrees of
    freedom) gaps that are correlated within their source, each over 2,000 simulated data sets and with 1,000 resamples,
    is 93.2 to 97.0% with 2 to 8 prefixes a source. With 1 to 16 it is 90.3 to 96.2%, lowest with 8 sources and a skew.
    The percentile interval covers 84.0 to 89.8% with 8 sources. The table is printed by
    `python -m pytest -m slow -s tests/statistics/test_coverage.py`.

    Args:
        human (`ArrayLike` of shape `(n,)`): The measure on the human text of every prefix.
        model (`ArrayLike` of shape `(n,)`): The measure on the model's text for the same prefixes.
        sources (`Sequence[Hashable]` of length `n`): The source text of every prefix.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `GapEstimate`: Means, gap, interval, effect size and p-value.

    Raises:
        ValueError: If lengths differ, there is no prefix, or a value is not finite; the message names the argument.

    Example:
        >>> estimate = paired_gap([3.0, 4.0, 5.0, 4.0], [2.0, 3.0, 3.0, 4.0], ["a", "a", "b", "c"])
        >>> estimate.n, estimate.n_sources, estimate.gap
        (4, 3, 1.0)
    """
    human_values, model_values = column(human, "human"), column(model, "model")
    if len(human_values) != len(model_values):
        raise ValueError(f"model: {len(model_values)} values for {len(human_values)} human ones")
    (group,) = gap_groups(human_values - model_values, sources)
    (clusters,) = group.clusters
    ci95, p_value = interval_and_p([group], resamples=resamples, seed=seed)
    n = len(human_values)
    # fsum: the means do not depend on the order of rows, not even in the last digit.
    human_mean, model_mean = math.fsum(human_values) / n, math.fsum(model_values) / n
    return GapEstimate(
        n=n,
        n_sources=len(clusters.sources),
        human=human_mean,
        model_value=model_mean,
        gap=human_mean - model_mean,
        ratio=human_mean / model_mean if model_mean else float("nan"),
        ci95=ci95,
        effect_size=standardised_mean(clusters.source_means),
        p_value=p_value,
    )


def gap_groups(gaps: ArrayLike, sources: Sources) -> list[Group]:
    """The sources behind a gap, for its interval and its tests.

    Args:
        gaps (`ArrayLike` of shape `(n,)`): Gap of every prefix.
        sources (`Sequence[Hashable]` of length `n`): The source text of every prefix.
    """
    return [Group([Clusters.gather(column(gaps, "gaps"), sources, "sources")], [1])]
