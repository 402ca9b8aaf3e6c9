"""Whether too little and too much are both worse: the quadratic term, where its peak lies, and a line on either side.

Design choices:

- The quadratic term alone is no evidence: a relation that only flattens has one below 0 as well (Simonsohn 2018, "Two
  lines: a valid alternative to the invalid testing of U-shaped relationships with quadratic regressions"). So an
  inverted U is found only where, besides, a line fitted below the peak of the quadratic rises and one fitted above it
  falls, each with a 95% interval that leaves 0 out. The lines may jump at the peak; between them they share strata and
  control.
- The peak has to lie between the 10% and the 90% quantile of the measure: beyond it there are too few texts for a line.
- Texts are compared within strata, and a control enters as a linear term (see `ugap.statistics.correlations`, also for
  the resamples). Intervals are Student's with the bootstrap's standard error; that of the peak, a ratio, is of the
  bootstrap's quantiles, and is given only where the interval of the quadratic term leaves 0 out.
- Both sides are standardised: a term is in standard deviations of `y` per (squared) standard deviation of `x`.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy  # its `stats` loads at first use, in a third of a second
from numpy.typing import ArrayLike, NDArray

from ugap.statistics.bootstrap import LEVEL, FloatArray, Sources, column
from ugap.statistics.correlations import FEWEST_FREEDOM, draw, strata_of

EDGES = (0.1, 0.9)  # quantiles of x between which a peak can have a line on either side
_NONE = (math.nan, math.nan)


@dataclass(frozen=True)
class Term:
    """A coefficient with its 95% interval and its two-sided p; NaN where it is not determined."""

    value: float
    ci95: tuple[float, float]
    p_value: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves 0 out, else 0."""
        low, high = self.ci95
        return 1 if low > 0 else -1 if high < 0 else 0


UNKNOWN = Term(math.nan, _NONE, math.nan)


@dataclass(frozen=True)
class InvertedU:
    """The quadratic regression of `y` on `x`, and the two lines.

    Args:
        n (`int`): Texts in strata of at least two.
        quadratic (`Term`): The quadratic term, in standard deviations of `y` per squared standard deviation of `x`.
        peak (`float`): Where the quadratic peaks, in the unit of `x`; NaN where it has no peak.
        peak_ci95 (`tuple[float, float]`): Its 95% interval; NaN where the interval of the quadratic term includes 0.
        below (`Term`): Slope of the line below the peak; unknown where the peak lies outside of the middle 80% of `x`.
        above (`Term`): Slope of the line above it.
    """

    n: int
    quadratic: Term
    peak: float
    peak_ci95: tuple[float, float]
    below: Term
    above: Term

    @property
    def found(self) -> bool:
        """Whether `y` rises to the peak and falls after it, each beyond chance."""
        return self.quadratic.sign < 0 < self.below.sign and self.above.sign < 0


def inverted_u(
    x: ArrayLike,
    y: ArrayLike,
    *,
    strata: Sources | None = None,
    control: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> InvertedU:
    """Look for an inverted U of `y` over `x`.

    Args:
        x (`ArrayLike` of shape `(n,)`): The measure of every text.
        y (`ArrayLike` of shape `(n,)`): Its rating.
        strata (`Sequence[Hashable]` of length `n`, *optional*): What every text is compared within.
        control (`ArrayLike` of shape `(n,)`, *optional*): What enters as a linear term, such as the length.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Raises:
        ValueError: If lengths differ, there is no text, a value is not finite, or `resamples` is below 2.

    Example:
        >>> x = np.linspace(0, 4, 60)
        >>> result = inverted_u(x, -((x - 1.5) ** 2) + 0.1 * np.cos(40 * x))
        >>> result.found, round(result.peak, 1)
        (True, 1.5)
    """
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    measure, rating = column(x, "x"), column(y, "y")
    other = [] if control is None else [column(control, "control")]
    for name, values in (("y", rating), *(("control", values) for values in other)):
        if len(values) != len(measure):
            raise ValueError(f"{name}: {len(values)} values for {len(measure)} of x")
    groups = strata_of(strata, len(measure))
    kept = np.concatenate(groups) if groups else np.zeros(0, np.intp)
    n, nothing = len(kept), InvertedU(len(kept), UNKNOWN, math.nan, _NONE, UNKNOWN, UNKNOWN)
    if not n or not np.ptp(measure[kept]) or not np.ptp(rating[kept]):
        return nothing
    middle, scale = float(measure[kept].mean()), float(measure[kept].std())
    z = (measure - middle) / scale
    rating = rating / float(rating[kept].std())
    weights = draw(groups, resamples, seed)

    def fit(*columns: FloatArray) -> tuple[FloatArray, FloatArray, int] | None:
        """Coefficients, those of the resamples, and the degrees of freedom; `None` where they are not determined."""
        design = [*columns, *other, rating]
        once = _fits(design, groups, [np.ones((len(group), 1)) for group in groups])
        freedom = n - len(groups) - len(design) + 1
        return (
            None
            if once is None or freedom < FEWEST_FREEDOM
            else (once[0], _resampled(design, groups, weights), freedom)
        )

    curve = fit(z, z**2)
    if curve is None:
        return nothing
    (linear, square, *_), drawn, freedom = curve
    quadratic = _term(square, drawn[:, 1], freedom)
    if square >= 0:
        return InvertedU(n, quadratic, math.nan, _NONE, UNKNOWN, UNKNOWN)
    peak, peak_ci95 = -linear / (2 * square), _NONE  # in standard deviations of x, like all of `fit`
    if quadratic.sign < 0:
        bent = drawn[drawn[:, 1] < 0]
        low, high = np.quantile(-bent[:, 0] / (2 * bent[:, 1]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        peak_ci95 = (middle + scale * float(low), middle + scale * float(high))
    lines = None
    if np.quantile(z[kept], EDGES[0]) < peak < np.quantile(z[kept], EDGES[1]):
        # The third column lets the lines jump at the peak, so that neither leans on the other.
        over = (z >= peak).astype(np.float64)
        lines = fit((z - peak) * (1 - over), (z - peak) * over, over)
    below, above = (UNKNOWN if lines is None else _term(lines[0][i], lines[1][:, i], lines[2]) for i in (0, 1))
    return InvertedU(n, quadratic, middle + scale * float(peak), peak_ci95, below, above)


def _term(value: float, drawn: FloatArray, freedom: int) -> Term:
    error = float(np.std(drawn[np.isfinite(drawn)], ddof=1))
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * scipy.stats.t.sf(abs(value) / error, freedom)) if error > 0 else float(value == 0)
    return Term(float(value), (float(value) - reach, float(value) + reach), p)


def _resampled(design: list[FloatArray], groups: list[NDArray[np.intp]], weights: list[FloatArray]) -> FloatArray:
    fits = _fits(design, groups, weights)
    assert fits is not None  # `None` is for the data as a single resample, which `fit` has checked
    return fits


def _fits(design: list[FloatArray], groups: list[NDArray[np.intp]], weights: list[FloatArray]) -> FloatArray | None:
    """Least squares of the last column on the others and an intercept for each stratum, in every resample: `(R, K)`.

    NaN for a resample that does not determine them; `None` where the data, as a single resample, do not.
    """
    k = len(design)
    table = np.stack(design, axis=1)
    products = np.zeros((weights[0].shape[1], k, k))
    for group, drawn in zip(groups, weights, strict=True):
        rows = table[group] - table[group].mean(axis=0)  # (n, k); centred once more below, by what is drawn
        sums = drawn.T @ rows
        squares = (drawn.T @ (rows[:, :, None] * rows[:, None, :]).reshape(len(group), k * k)).reshape(-1, k, k)
        products += squares - sums[:, :, None] * sums[:, None, :] / drawn.sum(axis=0)[:, None, None]
    left, right = products[:, :-1, :-1], products[:, :-1, -1]
    size = np.sqrt(np.maximum(np.einsum("rii->ri", left), 1e-300))
    left = left / (size[:, :, None] * size[:, None, :])  # of one scale, so that a small one is no singular one
    determined = np.linalg.matrix_rank(left, tol=1e-9, hermitian=True) == k - 1
    if len(determined) == 1 and not determined[0]:
        return None
    out = np.full((len(determined), k - 1), np.nan)
    scaled = np.linalg.solve(left[determined], (right / size)[determined][:, :, None])[:, :, 0]
    out[determined] = scaled / size[determined]
    return out
