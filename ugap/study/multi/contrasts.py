"""The contrasts of a study of many models: people, stages of training and domains, with one correction over all.

Design choices:

- Of a model only one value per text and measure is kept, so twenty-eight models fit into memory.
- Two models of one family are compared on the prefixes that both continued (by name); the interval is over
  source texts. Each gap is human less model, so the human text that each tokenizer and each prompting sees is its own.
- Every later stage of a family is compared with every earlier one: in the same prompting where both have it, else with
  the earlier one raw, which is how a base model is asked at all.
- Where several models share a kind, or several families a pair of stages, all of them are pooled as well: texts are the
  random sample, models are not, so such a row speaks of these models and no others.
- Holm's correction is over all rows, whatever their kind.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ugap.statistics import paired_gap
from ugap.study.contrasts import CONTRAST_MEASURES, contrast_figures, with_holm
from ugap.study.measures import text_value
from ugap.study.multi.run import KINDS, ModelEntry, model_folder
from ugap.study.pairs import SELF, pair
from ugap.study.store import from_row

ALL = "all"


@dataclass(frozen=True)
class Level:
    """One model's texts beside people's, in one domain, prompting, decoding and reading.

    Args:
        model (`ModelEntry`): The model.
        domain (`str`): Domain of the texts.
        prompting (`str`): `"raw"` or `"chat"`.
        decoding (`str`): Name of the decoding.
        scorer (`str`): `"self"`, or the fixed model that reads.
        n_dropped (`int`): Pairs that were too short.
        prefixes (`list[str]`): The `n` prefixes by name.
        sources (`list[str]`): Their source texts.
        human (`dict[str, np.ndarray]`): By measure, the value of every human text, `(n,)`; NaN where it has none.
        written (`dict[str, np.ndarray]`): By measure, the value of every text of the model, `(n,)`.
    """

    model: ModelEntry
    domain: str
    prompting: str
    decoding: str
    scorer: str
    n_dropped: int
    prefixes: list[str]
    sources: list[str]
    human: dict[str, np.ndarray]
    written: dict[str, np.ndarray]

    def gaps(self, measure: str) -> dict[str, tuple[float, str]]:
        """Gap and source by prefix, where there is a gap."""
        both = zip(self.prefixes, self.sources, self.human[measure] - self.written[measure], strict=True)
        return {prefix: (float(gap), source) for prefix, source, gap in both if math.isfinite(gap)}


def read_levels(output: str | Path, model: ModelEntry) -> list[Level]:
    """The levels of a model whose study is finished, out of its `scores.parquet`."""
    table = pq.read_table(model_folder(output, model) / "scores.parquet")
    texts = [from_row(row) for row in table.to_pylist()]
    source_of = {text.id: text.source for text in texts}
    levels = []
    for cell in pair(replace(text, source=text.id) for text in texts):
        values = [
            {name: np.array([text_value(scores, name) for scores in side]) for name in CONTRAST_MEASURES}
            for side in (cell.human, cell.generated)
        ]
        levels.append(
            Level(
                model,
                cell.domain,
                cell.prompting,
                cell.decoding,
                SELF if cell.scorer == model.name else cell.scorer,
                cell.n_dropped,
                cell.sources,
                [source_of[prefix] for prefix in cell.sources],
                *values,
            )
        )
    return levels


def contrast_multi(levels: Sequence[Level], *, seed: int, resamples: int = 10_000) -> list[dict[str, Any]]:
    """Rows of `contrasts.json`, with Holm's correction over all of them.

    A row's `kind` is `"people"` (human less model: `b` is the model, or all models of a kind), `"stage"` (gap of the
    later stage `a` less gap of the earlier `b`, within a family or pooled over families) or `"domain"` (gap in creative
    less gap in functional text, of one model).

    Args:
        levels (`Sequence[Level]`): All levels of all models.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
    """
    options: dict[str, Any] = {"seed": seed, "resamples": resamples}
    rows = [row for measure in CONTRAST_MEASURES for row in _people(levels, measure, options)]
    rows += [row for measure in CONTRAST_MEASURES for row in _stages(levels, measure, options)]
    rows += [row for measure in CONTRAST_MEASURES for row in _domains(levels, measure, options)]
    return with_holm(rows)


def _people(levels: Sequence[Level], measure: str, options: dict[str, Any]) -> Iterable[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[Level]] = {}
    for level in levels:
        yield from _people_row([level], level.model.title, level.model.family, measure, options)
        groups.setdefault((level.model.kind, level.domain, level.prompting, level.decoding, level.scorer), []).append(
            level
        )
    for (kind, *_), group in groups.items():
        if len(group) > 1:
            yield from _people_row(group, f"{ALL} {len(group)} {kind}", ALL, measure, options)


def _people_row(
    group: Sequence[Level], name: str, family: str, measure: str, options: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    """The estimate for one level or several together; none where no text has the measure."""
    human = np.concatenate([level.human[measure] for level in group])
    written = np.concatenate([level.written[measure] for level in group])
    sources = np.array([source for level in group for source in level.sources])
    keep = np.isfinite(human) & np.isfinite(written)
    if not keep.any():
        return
    first = group[0]
    estimate = paired_gap(human[keep], written[keep], sources[keep], **options)
    yield {
        "kind": "people",
        "measure": measure,
        "a": "people",
        "b": name,
        "family": family,
        "kind_a": "people",
        "kind_b": first.model.kind,
        "domain": first.domain,
        "prompting_a": first.prompting,
        "prompting_b": first.prompting,
        "decoding": first.decoding,
        "scorer": first.scorer,
        "n": estimate.n,
        "n_dropped": sum(level.n_dropped for level in group),
        "n_sources": [estimate.n_sources, estimate.n_sources],
        "value_a": estimate.human,
        "value_b": estimate.model_value,
        "difference": estimate.gap,
        "ci95": list(estimate.ci95),
        "effect_size": estimate.effect_size,
        "p_value": estimate.p_value,
    }


def _stages(levels: Sequence[Level], measure: str, options: dict[str, Any]) -> Iterable[dict[str, Any]]:
    groups: dict[tuple[str, ...], list[tuple[Level, Level]]] = {}
    for a in levels:
        for b in levels:
            scorer = _common_scorer(a, b)
            if scorer is not None and _are_stages(a, b, levels):
                key = (a.model.kind, b.model.kind, a.domain, a.prompting, b.prompting, a.decoding, scorer)
                groups.setdefault(key, []).append((a, b))
    for (*_, scorer), pairs in groups.items():
        for a, b in pairs:
            yield from _stage_row([(a, b)], (a.model.title, b.model.title), a.model.family, scorer, measure, options)
        families = {a.model.family for a, _ in pairs}
        if len(families) > 1:
            a, b = pairs[0]
            names = (f"{ALL} {a.model.kind}", f"{ALL} {b.model.kind}")
            yield from _stage_row(pairs, names, ALL, scorer, measure, options)


def _common_scorer(a: Level, b: Level) -> str | None:
    """Who reads both: each itself, or one model, which may be one of the two."""
    if a.scorer == b.scorer:
        return a.scorer
    for one, other in ((a, b), (b, a)):
        if one.scorer == SELF and one.model.name == other.scorer:
            return other.scorer
    return None


def _are_stages(a: Level, b: Level, levels: Sequence[Level]) -> bool:
    """Whether `a` is a later stage of `b`'s family, and these are the promptings in which the two are compared."""
    if a.model.family != b.model.family or KINDS.index(a.model.kind) <= KINDS.index(b.model.kind):
        return False
    if (a.domain, a.decoding) != (b.domain, b.decoding):
        return False
    if a.prompting == b.prompting:
        return True
    same = {level.prompting for level in levels if level.model is b.model}
    return b.prompting == "raw" and a.prompting not in same


def _stage_row(
    pairs: Sequence[tuple[Level, Level]],
    names: tuple[str, str],
    family: str,
    scorer: str,
    measure: str,
    options: dict[str, Any],
) -> Iterable[dict[str, Any]]:
    """The contrast of one pair of models or of several together; none where no prefix is shared."""
    later: list[tuple[float, str]] = []
    earlier: list[tuple[float, str]] = []
    for a, b in pairs:
        gaps_a, gaps_b = a.gaps(measure), b.gaps(measure)
        shared = [prefix for prefix in gaps_a if prefix in gaps_b]
        later += [gaps_a[prefix] for prefix in shared]
        earlier += [(gaps_b[prefix][0], gaps_a[prefix][1]) for prefix in shared]
    a, b = pairs[0]
    labels = {"kind": "stage", "measure": measure, "a": names[0], "b": names[1], "family": family, "domain": a.domain}
    figures = contrast_figures(later, earlier, paired=True, **options)
    if figures is not None:
        yield {**labels, **_of_both(a, b), "scorer": scorer, "n": len(later), **_values(later, earlier), **figures}


def _domains(levels: Sequence[Level], measure: str, options: dict[str, Any]) -> Iterable[dict[str, Any]]:
    for a in levels:
        for b in levels:
            same = (a.model, a.prompting, a.decoding, a.scorer) == (b.model, b.prompting, b.decoding, b.scorer)
            if not same or (a.domain, b.domain) != ("creative", "functional"):
                continue
            labels = {"kind": "domain", "measure": measure, "a": a.domain, "b": b.domain}
            labels |= {"model": a.model.title, "family": a.model.family, "scorer": a.scorer}
            gaps_a, gaps_b = ([*level.gaps(measure).values()] for level in (a, b))
            figures = contrast_figures(gaps_a, gaps_b, paired=False, **options)
            if figures is not None:
                n = len(gaps_a) + len(gaps_b)
                yield {**labels, **_of_both(a, b), "n": n, **_values(gaps_a, gaps_b), **figures}


def _of_both(a: Level, b: Level) -> dict[str, Any]:
    """What a row says of the two levels that it contrasts."""
    return {
        "kind_a": a.model.kind,
        "kind_b": b.model.kind,
        "prompting_a": a.prompting,
        "prompting_b": b.prompting,
        "decoding": a.decoding,
    }


def _values(a: Sequence[tuple[float, str]], b: Sequence[tuple[float, str]]) -> dict[str, float]:
    """The mean gap of either side."""
    value_a, value_b = (math.fsum(gap for gap, _ in side) / len(side) for side in (a, b))
    return {"value_a": value_a, "value_b": value_b}
