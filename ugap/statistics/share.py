"""How much of a gap is closed, with an interval.

Design choices:

- With `b` the gap before and `a` the gap after, the share is `1 - |a / b|`. A gap whose sign has changed counts with
  its size: what lies above the human level is as far from it as what lies as much below.
- So an overshoot is what is left, and the share is at most 1.
- The interval is made for the signed ratio `a / b` and then folded. An interval of the absolute ratio itself would
  never reach a share of 1, where the ratio passes through 0; the folded one covers at least as often as the signed.
- The interval of the ratio is Fieller's (1954, "Some problems in interval estimation"): all `r` for which `a - r b` is
  not told from 0. It is made of the parts of `ugap.statistics.bootstrap`: jackknife variances over sources, both gaps
  resampled together, and the 95% quantile of the bootstrap's `|t*|` at the estimated ratio in the place of 1.96.
- Where the gap before cannot be told from 0 there is no bounded set of ratios, and no interval: a share of nothing.
"""

import math
from dataclasses import dataclass, replace

from numpy.typing import ArrayLike

from ugap.statistics.bootstrap import Clusters, Group, Sources, column, interval


@dataclass(frozen=True)
class ShareClosed:
    """How much of a gap is closed.

    Args:
        n_sources (`int`): Source texts that both gaps rest on.
        before (`float`): The gap before, over those sources.
        after (`float`): The gap after.
        share (`float`): `1 - |after / before|`: 1 where nothing is left, 0 where nothing has changed or the gap is as
            large on the other side, below 0 where it has grown; NaN where the gap before is zero.
        ci95 (`tuple[float, float]`): 95% interval of the share; NaN where the gap before cannot be told from 0, and
            for a single source.
    """

    n_sources: int
    before: float
    after: float
    share: float
    ci95: tuple[float, float]


def share_closed(
    before: ArrayLike,
    sources_before: Sources,
    after: ArrayLike,
    sources_after: Sources,
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> ShareClosed:
    """Estimate which share of the absolute gap is closed.

    The sides are joined by source (a source of one side alone is left out), and their sources are resampled together.

    With 12 and 40 sources and a gap before that is about 5 standard errors from 0, over 1,000 simulated data sets each
    with normal, skewed and heavy-tailed gaps, the interval covers the true share (0, 0.6, 0.7 and 1) in 93.5 to 98.2%.
    The table is printed by `python -m pytest -m slow -s tests/statistics/test_share.py`.

    Args:
        before (`ArrayLike` of shape `(n,)`): Gap of every prefix before.
        sources_before (`Sequence[Hashable]` of length `n`): The source text of every prefix.
        after (`ArrayLike` of shape `(m,)`): Gap of every prefix after.
        sources_after (`Sequence[Hashable]` of length `m`): The source text of every prefix.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Raises:
        ValueError: If no source is shared, lengths differ, a side is empty or a value is not finite.

    Example:
        >>> share_closed([1.0, 3.0, 2.0], ["a", "b", "c"], [-0.4, -0.6, -0.5], ["a", "b", "c"]).share
        0.75
    """
    b = Clusters.gather(column(before, "before"), sources_before, "sources_before")
    a = Clusters.gather(column(after, "after"), sources_after, "sources_after")
    on_a = set(a.sources)
    shared = [source for source in b.sources if source in on_a]
    if not shared:
        raise ValueError("sources_after: no source is shared with sources_before")
    b, a = b.take(shared), a.take(shared)
    share = 1 - abs(a.mean / b.mean) if b.mean else math.nan
    least, most = folded(_ratio(a, b, resamples, seed))
    return ShareClosed(len(shared), b.mean, a.mean, share, (1 - most, 1 - least))


def folded(ci95: tuple[float, float]) -> tuple[float, float]:
    """The interval of a size from that of the signed number: it covers the size wherever that one covers the number.

    Example:
        >>> folded((-0.2, 0.5)), folded((-0.5, -0.2))
        ((0.0, 0.5), (0.2, 0.5))
    """
    low, high = ci95
    return 0.0 if low <= 0 <= high else min(abs(low), abs(high)), max(abs(low), abs(high))


def _ratio(a: Clusters, b: Clusters, resamples: int, seed: int) -> tuple[float, float]:
    """Fieller's interval of `mean(a) / mean(b)`; NaN where it is not bounded."""
    nothing = (math.nan, math.nan)
    if len(b.sources) < 2 or not b.mean:
        return nothing
    ratio = a.mean / b.mean
    # a - ratio * b has the mean 0: the ends of its interval are the critical value, in standard errors.
    form = Group([a, replace(b, sums=ratio * b.sums)], [1, -1])
    error = math.sqrt(form.variance())
    low, high = interval([form], resamples=resamples, seed=seed)
    if low == high:  # the sources agree up to rounding
        return ratio, ratio
    critical = (high - low) / 2 / error
    of_a, of_b = Group([a], [1]).variance(), Group([b], [1]).variance()
    shared = (of_a + of_b - Group([a, b], [1, -1]).variance()) / 2
    # (a - r b)^2 <= critical^2 (of_a - 2 r shared + r^2 of_b), solved for r.
    square = b.mean**2 - critical**2 * of_b
    middle = a.mean * b.mean - critical**2 * shared
    rest = a.mean**2 - critical**2 * of_a
    if square <= 0:
        return nothing
    root = math.sqrt(max(middle**2 - square * rest, 0.0))
    return (middle - root) / square, (middle + root) / square
