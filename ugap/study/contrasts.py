"""The numbers of a row, in every kind of study: a gap, a contrast between gaps, one correction over a table.

A row of gaps is labelled by domain, model, prompting, decoding and scorer. A row of contrasts says in `contrast` what
its sides `a` and `b` are: two domains of one `model`, or two models of different stages in one `domain`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ugap.statistics import contrast_independent, contrast_paired, holm, paired_gap

# The stages of a model's training, in order: the later is side `a`, so a difference is what that stage added.
STAGES = ("base", "instruct", "reasoning")
DOMAIN, STAGE = "domain", "stage"
# Contrasts are made for the measures of a text's mean uncertainty; the others follow from these or need a second pass.
CONTRAST_MEASURES = ("nll", "entropy", "bits_per_byte", "deviation")
# The family of a row that pools several models.
ALL = "all"

# Gap and source text of every prefix.
Gaps = Iterable[tuple[float, str]]


def gap_figures(
    human: np.ndarray, model: np.ndarray, sources: Sequence[str], *, seed: int, resamples: int
) -> dict[str, Any] | None:
    """The estimate of a gap over the prefixes whose two texts have the measure; `None` where there is no such prefix.

    Args:
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
    return asdict(paired_gap(human[keep], model[keep], kept_sources, seed=seed, resamples=resamples))


def contrast_figures(a: Gaps, b: Gaps, *, paired: bool, seed: int, resamples: int) -> dict[str, Any] | None:
    """How much larger the gaps `a` are than the gaps `b`; `None` where the two cannot be contrasted.

    Args:
        a (`Iterable[tuple[float, str]]`): Gap and source text of every prefix of one side.
        b (`Iterable[tuple[float, str]]`): Those of the other side.
        paired (`bool`): Whether the sides share source texts, as two models do; two domains share none.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`): Bootstrap resamples.

    Example:
        >>> chat, base = [(0.5, "tale 1"), (0.75, "tale 2")], [(0.25, "tale 1"), (0.5, "tale 2")]
        >>> contrast_figures(chat, base, paired=True, seed=0, resamples=100)["difference"]
        0.25
        >>> contrast_figures(chat, base, paired=False, seed=0, resamples=100) is None
        True
    """
    a, b = list(a), list(b)
    shared = {source for _, source in a} & {source for _, source in b}
    if not (a and b) or bool(shared) != paired:
        return None
    (gaps_a, sources_a), (gaps_b, sources_b) = zip(*a, strict=True), zip(*b, strict=True)
    contrast = contrast_paired if paired else contrast_independent
    return {
        "n": [len(gaps_a), len(gaps_b)],
        "gap_a": math.fsum(gaps_a) / len(gaps_a),
        "gap_b": math.fsum(gaps_b) / len(gaps_b),
        **asdict(contrast(gaps_a, sources_a, gaps_b, sources_b, seed=seed, resamples=resamples)),
    }


def with_holm(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `p_holm`: their `p_value`, corrected over all of them by Holm's method.

    Example:
        >>> [row["p_holm"] for row in with_holm([{"p_value": 0.01}, {"p_value": 0.5}])]
        [0.02, 0.5]
    """
    rows = list(rows)
    corrected = holm([row["p_value"] for row in rows])
    return [{**row, "p_holm": float(p)} for row, p in zip(rows, corrected, strict=True)]
