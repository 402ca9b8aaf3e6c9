"""From pairs of texts to the table of gaps and the contrasts between them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from ugap.statistics import paired_gap
from ugap.study.contrasts import CONTRAST_MEASURES, contrast_figures, with_holm
from ugap.study.measures import MEASURES, text_value, token_values
from ugap.study.pairs import SELF, Cell

# What stands in the table for a cell without a pair.
PRIMARY = "nll"
_NOTHING: Mapping[str, Any] = {
    **{"n": 0, "n_sources": 0, "n_dropped": 0},
    **dict.fromkeys(("human", "model_value", "gap", "ratio"), math.nan),
    "ci95": [math.nan, math.nan],
    **dict.fromkeys(("effect_size", "p_value", "wasserstein"), math.nan),
}


def gap_table(cells: Sequence[Cell], *, seed: int, resamples: int = 10_000) -> list[dict[str, Any]]:
    """Rows of `gap.json`: an estimate for every cell and measure, Holm's correction over all rows.

    A measure that the texts of a cell do not have (PMI without a prefix) has no row. A cell without a pair has one, of
    the surprisal, with `n` 0 and NaN for what cannot be estimated.
    """
    rows = []
    for cell in cells:
        if not cell.human:
            rows.append({**_labels(cell), "measure": PRIMARY, **_NOTHING, "n_dropped": cell.n_dropped})
        for measure in MEASURES if cell.human else ():
            human = np.array([text_value(scores, measure) for scores in cell.human])
            model = np.array([text_value(scores, measure) for scores in cell.generated])
            keep = np.isfinite(human) & np.isfinite(model)
            if not keep.any():
                continue
            sources = [source for source, kept in zip(cell.sources, keep, strict=True) if kept]
            estimate = paired_gap(human[keep], model[keep], sources, seed=seed, resamples=resamples)
            rows.append(
                {
                    **_labels(cell),
                    "measure": measure,
                    "n": estimate.n,
                    "n_sources": estimate.n_sources,
                    "n_dropped": cell.n_dropped,
                    "human": estimate.human,
                    "model_value": estimate.model_value,
                    "gap": estimate.gap,
                    "ratio": estimate.ratio,
                    "ci95": list(estimate.ci95),
                    "effect_size": estimate.effect_size,
                    "p_value": estimate.p_value,
                    "wasserstein": scipy.stats.wasserstein_distance(
                        np.concatenate([token_values(scores, measure) for scores in cell.human]),
                        np.concatenate([token_values(scores, measure) for scores in cell.generated]),
                    ),
                }
            )
    return with_holm(rows)


def contrast_table(
    cells: Sequence[Cell], tags: Mapping[str, str], *, seed: int, resamples: int = 10_000
) -> list[dict[str, Any]]:
    """Contrasts between gaps: creative against functional, and models with different tags on the same texts.

    Args:
        cells (`Sequence[Cell]`): Cells of the table.
        tags (`Mapping[str, str]`): `"base"`, `"instruct"` or `"reasoning"` by model.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
    """
    rows: list[dict[str, Any]] = []
    for measure in CONTRAST_MEASURES:
        gaps = [(cell, cell.gaps(measure)) for cell in cells]
        for (a, gaps_a), (b, gaps_b) in itertools.product(gaps, repeat=2):
            kind = _contrast_kind(a, b, tags)
            if kind is None:
                continue
            figures = contrast_figures(gaps_a, gaps_b, paired=kind == "model", seed=seed, resamples=resamples)
            if figures is not None:
                rows.append({**_contrast_labels(kind, a, b, tags), "measure": measure, **figures})
    return with_holm(rows)


def _contrast_kind(a: Cell, b: Cell, tags: Mapping[str, str]) -> str | None:
    if (a.decoding, a.prompting) != (b.decoding, b.prompting):
        return None
    if (a.domain, b.domain) == ("creative", "functional") and (a.model, a.scorer) == (b.model, b.scorer):
        return "domain"
    tag_a, tag_b = tags.get(a.model), tags.get(b.model)
    # Two self-scored models are each compared with people by their own scale, as are two under one scorer.
    same_scale = a.scorer == b.scorer or (a.scorer == a.model and b.scorer == b.model)
    if a.domain == b.domain and same_scale and tag_a and tag_b and _TAG_ORDER.get(tag_a, 9) > _TAG_ORDER.get(tag_b, 9):
        return "model"
    return None


# The later stage of training comes first: the difference is what it added to the gap.
_TAG_ORDER = {"base": 0, "instruct": 1, "reasoning": 2}


def _contrast_labels(kind: str, a: Cell, b: Cell, tags: Mapping[str, str]) -> dict[str, Any]:
    same = {"kind": kind, "prompting": a.prompting, "decoding": a.decoding}
    if kind == "domain":
        return {**same, "a": a.domain, "b": b.domain, "model": a.model, "scorer": _scorer(a)}
    return {
        **same,
        "a": a.model,
        "b": b.model,
        "tag_a": tags[a.model],
        "tag_b": tags[b.model],
        "domain": a.domain,
        "scorer": a.scorer if a.scorer == b.scorer else SELF,
    }


def _labels(cell: Cell) -> dict[str, Any]:
    return {
        "domain": cell.domain,
        "model": cell.model,
        "prompting": cell.prompting,
        "decoding": cell.decoding,
        "scorer": _scorer(cell),
    }


def _scorer(cell: Cell) -> str:
    return SELF if cell.scorer == cell.model else cell.scorer
