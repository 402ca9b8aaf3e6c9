"""From pairs of texts to the tables of `gap.json`: gaps, and the contrasts between them."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from ugap.study.contrasts import (
    CONTRAST_MEASURES,
    DOMAIN,
    PRIMARY,
    STAGE,
    STAGES,
    Tested,
    contrast_test,
    corrected,
    gap_test,
)
from ugap.study.measures import MEASURES, text_value, token_values
from ugap.study.pairs import SELF, Cell

_NO_FIGURES: Mapping[str, Any] = {
    **{"n": 0, "n_sources": 0},
    **dict.fromkeys(("human", "model_value", "gap", "ratio"), math.nan),
    "ci95": [math.nan, math.nan],
    **dict.fromkeys(("effect_size", "p_value", "wasserstein"), math.nan),
}


def gap_table(cells: Sequence[Cell], *, seed: int, resamples: int = 10_000) -> list[dict[str, Any]]:
    """Rows of `gap.json`: an estimate for every cell and measure, corrected over all rows by `corrected`.

    A measure that the texts of a cell do not have (PMI without a prefix) has no row. A cell without a pair has one, of
    the surprisal, with `n` 0 and NaN for what cannot be estimated.
    """
    tested = (test for cell in cells for test in cell_tests(cell, seed=seed, resamples=resamples))
    return corrected(tested, seed=seed, flips=resamples)


def flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `gap.json` for a spreadsheet: the ends of its interval are the columns `low` and `high`."""
    low, high = row["ci95"] or (None, None)
    return {**{name: value for name, value in row.items() if name != "ci95"}, "low": low, "high": high}


def cell_tests(cell: Cell, *, seed: int, resamples: int = 10_000) -> Iterator[Tested]:
    """The rows of one cell before their correction."""
    labels = {
        "domain": cell.domain,
        "model": cell.model,
        "prompting": cell.prompting,
        "decoding": cell.decoding,
        "scorer": _scorer(cell),
        "n_dropped": cell.n_dropped,
    }
    if not cell.human:
        yield Tested({**labels, "measure": PRIMARY, **_NO_FIGURES}, [])
    for measure in MEASURES if cell.human else ():
        human, model = (
            np.array([text_value(scores, measure) for scores in side]) for side in (cell.human, cell.generated)
        )
        options = {"seed": seed, "resamples": resamples}
        test = gap_test({**labels, "measure": measure}, human, model, cell.sources, **options)
        if test is not None:
            # Of single tokens, not of the texts' means: two sides may agree in the mean and differ in the tail.
            human_tokens, model_tokens = (
                np.concatenate([token_values(scores, measure) for scores in side])
                for side in (cell.human, cell.generated)
            )
            distance = scipy.stats.wasserstein_distance(human_tokens, model_tokens)
            yield Tested({**test.row, "wasserstein": distance}, test.groups)


def contrast_table(
    cells: Sequence[Cell], stages: Mapping[str, str], *, seed: int, resamples: int = 10_000
) -> list[dict[str, Any]]:
    """Contrasts between gaps: creative against functional, and models of different stages on the same texts.

    Args:
        cells (`Sequence[Cell]`): Cells of the table.
        stages (`Mapping[str, str]`): `"base"`, `"instruct"` or `"reasoning"` by model.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
    """
    tested: list[Tested] = []
    for measure in CONTRAST_MEASURES:
        gaps = [(cell, cell.gaps(measure)) for cell in cells]
        for (a, gaps_a), (b, gaps_b) in itertools.product(gaps, repeat=2):
            labels = _contrast_labels(a, b, stages)
            if labels is None:
                continue
            paired = labels["contrast"] == STAGE
            labels["measure"] = measure
            test = contrast_test(labels, gaps_a, gaps_b, paired=paired, seed=seed, resamples=resamples)
            if test is not None:
                tested.append(test)
    return corrected(tested, seed=seed, flips=resamples)


def _contrast_labels(a: Cell, b: Cell, stages: Mapping[str, str]) -> dict[str, Any] | None:
    """The labels of the contrast of two cells; `None` where there is none between them."""
    if (a.decoding, a.prompting) != (b.decoding, b.prompting):
        return None
    stage_a, stage_b = stages.get(a.model, ""), stages.get(b.model, "")
    labels = {
        "stage_a": stage_a,
        "stage_b": stage_b,
        "prompting_a": a.prompting,
        "prompting_b": b.prompting,
        "decoding": a.decoding,
    }
    if (a.domain, b.domain) == ("creative", "functional") and (a.model, a.scorer) == (b.model, b.scorer):
        return {"contrast": DOMAIN, "a": a.domain, "b": b.domain, "model": a.model, "scorer": _scorer(a), **labels}
    # Two self-scored models are each compared with people by their own scale, as are two under one scorer.
    same_scale = a.scorer == b.scorer or _scorer(a) == _scorer(b) == SELF
    at_a, at_b = (STAGES.index(stage) if stage in STAGES else -1 for stage in (stage_a, stage_b))
    if a.domain != b.domain or not same_scale or not 0 <= at_b < at_a:
        return None
    scorer = a.scorer if a.scorer == b.scorer else SELF
    return {"contrast": STAGE, "a": a.model, "b": b.model, "domain": a.domain, "scorer": scorer, **labels}


def _scorer(cell: Cell) -> str:
    return SELF if cell.scorer == cell.model else cell.scorer
