"""The numbers of a row, in every kind of study: a gap, a contrast between gaps, the corrections over a table.

Surprisal (NLL) is the primary measure, declared in advance. Its rows are one family, whose p is corrected by step-down
max-T. Perplexity is surprisal on another scale: it has the same gap, interval and p. All other measures are secondary:
their rows are one family with the correction of Benjamini and Hochberg.

A row of gaps is labelled by domain, model, prompting, decoding and scorer. A row of contrasts says in `contrast` what
its sides `a` and `b` are: two domains of one `model`, or two models of different stages in one `domain`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ugap.statistics import contrast_independent, contrast_paired, paired_gap
from ugap.statistics.bootstrap import Group
from ugap.statistics.contrast import independent_groups, paired_groups
from ugap.statistics.gap import gap_groups
from ugap.statistics.significance import false_discovery, step_down

# The stages of a model's training, in order: the later is side `a`, so a difference is what that stage added.
STAGES = ("base", "instruct", "reasoning")
DOMAIN, STAGE = "domain", "stage"
# Contrasts are made for the measures of a text's mean uncertainty; the others follow from these or need a second pass.
CONTRAST_MEASURES = ("nll", "entropy", "bits_per_byte", "deviation")
PRIMARY = "nll"
# Perplexities of texts are skewed: their arithmetic mean has no good interval, that of their logarithms has.
LOGGED = "ppl"
# The family of a row that pools several models.
ALL = "all"

# Gap and source text of every prefix.
Gaps = Iterable[tuple[float, str]]


@dataclass(frozen=True, eq=False)
class Tested:
    """A row before its correction.

    Args:
        row (`dict`): Labels and figures, with `measure` and `p_value`.
        groups (`list[Group]`): The sources behind its estimate.
    """

    row: dict[str, Any]
    groups: list[Group]


def corrected(tested: Iterable[Tested], *, seed: int, flips: int = 10_000) -> list[dict[str, Any]]:
    """The rows with `p_adjusted`: their `p_value` after the correction of their family, NaN where none is possible.

    Args:
        tested (`Iterable[Tested]`): All rows that are read together.
        seed (`int`): Seed of the sign flips.
        flips (`int`, *optional*, defaults to `10_000`): Draws of the signs.
    """
    tested = list(tested)
    p_values = np.array([one.row["p_value"] for one in tested])
    primary = np.array([one.row["measure"] in (PRIMARY, LOGGED) for one in tested], dtype=bool)
    adjusted = np.full(len(tested), math.nan)
    for family, correct in ((primary, partial(step_down, flips=flips, seed=seed)), (~primary, false_discovery)):
        of_family = [tested[i].groups for i in np.flatnonzero(family).tolist()]
        adjusted[family] = correct(of_family, p_values[family])
    return [{**one.row, "p_adjusted": float(p)} for one, p in zip(tested, adjusted, strict=True)]


def gap_test(
    labels: dict[str, Any], human: np.ndarray, model: np.ndarray, sources: Sequence[str], *, seed: int, resamples: int
) -> Tested | None:
    """The estimate of a gap over the prefixes whose two texts have the measure; `None` where there is no such prefix.

    Perplexity is estimated by its logarithm: `human` and `model_value` are geometric means over texts, `gap` and `ci95`
    are of the logarithm of their `ratio`.

    Args:
        labels (`dict`): What the row says besides its figures; `measure` among them.
        human (`np.ndarray` of shape `(n,)`): The measure on every human text; NaN where a text has none.
        model (`np.ndarray` of shape `(n,)`): That on the model's texts.
        sources (`Sequence[str]`): The source text of every prefix.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`): Bootstrap resamples.
    """
    keep = np.isfinite(human) & np.isfinite(model)
    if not keep.any():
        return None
    kept_sources = [sources[i] for i in np.flatnonzero(keep).tolist()]
    logged = labels["measure"] == LOGGED
    human, model = (np.log(side[keep]) if logged else side[keep] for side in (human, model))
    figures = asdict(paired_gap(human, model, kept_sources, seed=seed, resamples=resamples))
    if logged:
        of_texts = {name: math.exp(figures[name]) for name in ("human", "model_value")}
        figures |= {**of_texts, "ratio": math.exp(figures["gap"])}
    return Tested({**labels, **figures}, gap_groups(human - model, kept_sources))


def contrast_test(
    labels: dict[str, Any], a: Gaps, b: Gaps, *, paired: bool, seed: int, resamples: int
) -> Tested | None:
    """How much larger the gaps `a` are than the gaps `b`; `None` where the two cannot be contrasted.

    Args:
        labels (`dict`): What the row says besides its figures; `measure` among them.
        a (`Iterable[tuple[float, str]]`): Gap and source text of every prefix of one side.
        b (`Iterable[tuple[float, str]]`): Those of the other side.
        paired (`bool`): Whether the sides share source texts, as two models do; two domains share none.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`): Bootstrap resamples.

    Example:
        >>> chat, base = [(0.5, "tale 1"), (0.75, "tale 2")], [(0.25, "tale 1"), (0.5, "tale 2")]
        >>> contrast_test({}, chat, base, paired=True, seed=0, resamples=100).row["difference"]
        0.25
        >>> contrast_test({}, chat, base, paired=False, seed=0, resamples=100) is None
        True
    """
    a, b = list(a), list(b)
    shared = {source for _, source in a} & {source for _, source in b}
    if not (a and b) or bool(shared) != paired:
        return None
    (gaps_a, sources_a), (gaps_b, sources_b) = zip(*a, strict=True), zip(*b, strict=True)
    contrast, groups = (contrast_paired, paired_groups) if paired else (contrast_independent, independent_groups)
    sides = (gaps_a, sources_a, gaps_b, sources_b)
    row = {
        **labels,
        "n": [len(gaps_a), len(gaps_b)],
        "gap_a": math.fsum(gaps_a) / len(gaps_a),
        "gap_b": math.fsum(gaps_b) / len(gaps_b),
        **asdict(contrast(*sides, seed=seed, resamples=resamples)),
    }
    return Tested(row, groups(*sides))
