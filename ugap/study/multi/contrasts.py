"""The gaps and contrasts of a study of many models, corrected over both tables together.

Design choices:

- Of a model only one value per text and measure is kept, so twenty-eight models fit into memory.
- Two models of one family are compared on the prefixes that both continued (by name); the interval is over
  source texts. Each gap is human less model, so the human text that each tokenizer and each prompting sees is its own.
- Every later stage of a family is compared with every earlier one: in the same prompting where both have it, else with
  the earlier one raw, which is how a base model is asked at all.
- Where several models share a stage, or several families a pair of stages, all are pooled as well: texts are the
  random sample, models are not, so such a row speaks of these models and no others.
- Rows have the labels of `gap.json`, and the family. The rows of both tables are corrected together.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ugap.study.contrasts import (
    ALL,
    CONTRAST_MEASURES,
    DOMAIN,
    STAGE,
    STAGES,
    Tested,
    contrast_test,
    corrected,
    gap_test,
)
from ugap.study.measures import text_value
from ugap.study.multi.run import ModelEntry, model_folder
from ugap.study.pairs import SELF, pair
from ugap.study.store import from_row

Row = dict[str, Any]


@dataclass(frozen=True)
class ModelCell:
    """One model's texts and the human ones, in one domain, prompting, decoding and reading.

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
        gaps = zip(self.prefixes, self.sources, self.human[measure] - self.written[measure], strict=True)
        return {prefix: (float(gap), source) for prefix, source, gap in gaps if math.isfinite(gap)}


def read_cells(output: str | Path, model: ModelEntry) -> list[ModelCell]:
    """The cells of a model whose study is finished, out of its `scores.parquet`."""
    table = pq.read_table(model_folder(output, model) / "scores.parquet")
    texts = [from_row(row) for row in table.to_pylist()]
    source_of = {text.id: text.source for text in texts}
    cells = []
    # A pair keeps the source alone, so the prefix takes its place: stages are paired by prefix.
    for cell in pair(replace(text, source=text.id) for text in texts):
        human, written = (
            {name: np.array([text_value(scores, name) for scores in side]) for name in CONTRAST_MEASURES}
            for side in (cell.human, cell.generated)
        )
        cells.append(
            ModelCell(
                model=model,
                domain=cell.domain,
                prompting=cell.prompting,
                decoding=cell.decoding,
                scorer=SELF if cell.scorer == model.name else cell.scorer,
                n_dropped=cell.n_dropped,
                prefixes=cell.sources,
                sources=[source_of[prefix] for prefix in cell.sources],
                human=human,
                written=written,
            )
        )
    return cells


def contrast_multi(cells: Sequence[ModelCell], *, seed: int, resamples: int = 10_000) -> tuple[list[Row], list[Row]]:
    """The tables of `contrasts.json`: gaps of single and pooled models, and the contrasts between stages and domains.

    Args:
        cells (`Sequence[ModelCell]`): All cells of all models.
        seed (`int`): Seed of the bootstrap.
        resamples (`int`, *optional*, defaults to `10_000`): Bootstrap resamples.
    """
    options = {"seed": seed, "resamples": resamples}
    gaps = [row for measure in CONTRAST_MEASURES for row in _gaps(cells, measure, options)]
    contrasts = [row for measure in CONTRAST_MEASURES for row in _stages(cells, measure, options)]
    contrasts += [row for measure in CONTRAST_MEASURES for row in _domains(cells, measure, options)]
    rows = corrected([*gaps, *contrasts], seed=seed, flips=resamples)
    return rows[: len(gaps)], rows[len(gaps) :]


def _gaps(cells: Sequence[ModelCell], measure: str, options: dict[str, int]) -> Iterator[Tested]:
    groups: dict[tuple[str, ...], list[ModelCell]] = {}
    for cell in cells:
        yield from _gap_row([cell], cell.model.title, cell.model.family, measure, options)
        key = (cell.model.stage, cell.domain, cell.prompting, cell.decoding, cell.scorer)
        groups.setdefault(key, []).append(cell)
    for (stage, *_), group in groups.items():
        # A pool of one would repeat the row of its model.
        if len(group) > 1:
            yield from _gap_row(group, f"{ALL} {len(group)} {stage} models", ALL, measure, options)


def _gap_row(
    group: Sequence[ModelCell], name: str, family: str, measure: str, options: dict[str, int]
) -> Iterator[Tested]:
    """The gap of one cell or several together; none where no text has the measure."""
    first = group[0]
    labels = {
        "domain": first.domain,
        "model": name,
        "family": family,
        "stage": first.model.stage,
        "prompting": first.prompting,
        "decoding": first.decoding,
        "scorer": first.scorer,
        "measure": measure,
        "n_dropped": sum(cell.n_dropped for cell in group),
    }
    test = gap_test(
        labels,
        np.concatenate([cell.human[measure] for cell in group]),
        np.concatenate([cell.written[measure] for cell in group]),
        [source for cell in group for source in cell.sources],
        **options,
    )
    if test is not None:
        yield test


def _stages(cells: Sequence[ModelCell], measure: str, options: dict[str, int]) -> Iterator[Tested]:
    groups: dict[tuple[str, ...], list[tuple[ModelCell, ModelCell]]] = {}
    for a in cells:
        for b in cells:
            # Gaps on the scales of two different scorers cannot be subtracted.
            scorer = _common_scorer(a, b)
            if scorer is not None and _are_stages(a, b, cells):
                key = (a.model.stage, b.model.stage, a.domain, a.prompting, b.prompting, a.decoding, scorer)
                groups.setdefault(key, []).append((a, b))
    for (*_, scorer), pairs in groups.items():
        for a, b in pairs:
            yield from _stage_row([(a, b)], (a.model.title, b.model.title), a.model.family, scorer, measure, options)
        n_families = len({a.model.family for a, _ in pairs})
        if n_families > 1:
            name = f"{ALL} {n_families} families"
            yield from _stage_row(pairs, (name, name), ALL, scorer, measure, options)


def _common_scorer(a: ModelCell, b: ModelCell) -> str | None:
    """Who reads both: each itself, or one model, which may be one of the two."""
    if a.scorer == b.scorer:
        return a.scorer
    for one, other in ((a, b), (b, a)):
        if one.scorer == SELF and one.model.name == other.scorer:
            return other.scorer
    return None


def _are_stages(a: ModelCell, b: ModelCell, cells: Sequence[ModelCell]) -> bool:
    """Whether `a` is a later stage of `b`'s family, and these are the promptings in which the two are compared."""
    if a.model.family != b.model.family or STAGES.index(a.model.stage) <= STAGES.index(b.model.stage):
        return False
    if (a.domain, a.decoding) != (b.domain, b.decoding):
        return False
    if a.prompting == b.prompting:
        return True
    promptings_of_b = {cell.prompting for cell in cells if cell.model is b.model}
    return b.prompting == "raw" and a.prompting not in promptings_of_b


def _stage_row(
    pairs: Sequence[tuple[ModelCell, ModelCell]],
    names: tuple[str, str],
    family: str,
    scorer: str,
    measure: str,
    options: dict[str, int],
) -> Iterator[Tested]:
    """The contrast of one pair of models or of several together; none where no prefix is shared."""
    later: list[tuple[float, str]] = []
    earlier: list[tuple[float, str]] = []
    for a, b in pairs:
        gaps_a, gaps_b = a.gaps(measure), b.gaps(measure)
        shared = [prefix for prefix in gaps_a if prefix in gaps_b]
        later += [gaps_a[prefix] for prefix in shared]
        # The source is that of side `a`: both studies name it alike, and the pairing is by this name.
        earlier += [(gaps_b[prefix][0], gaps_a[prefix][1]) for prefix in shared]
    a, b = pairs[0]
    sides = {"a": names[0], "b": names[1], "domain": a.domain, "family": family, "scorer": scorer}
    labels = {"contrast": STAGE, **sides, **_of_both(a, b), "measure": measure}
    test = contrast_test(labels, later, earlier, paired=True, **options)
    if test is not None:
        yield test


def _domains(cells: Sequence[ModelCell], measure: str, options: dict[str, int]) -> Iterator[Tested]:
    for a in cells:
        for b in cells:
            same = (a.model, a.prompting, a.decoding, a.scorer) == (b.model, b.prompting, b.decoding, b.scorer)
            if not same or (a.domain, b.domain) != ("creative", "functional"):
                continue
            gaps_a, gaps_b = (cell.gaps(measure).values() for cell in (a, b))
            sides = {"a": a.domain, "b": b.domain, "model": a.model.title, "family": a.model.family}
            labels = {"contrast": DOMAIN, **sides, "scorer": a.scorer, **_of_both(a, b), "measure": measure}
            test = contrast_test(labels, gaps_a, gaps_b, paired=False, **options)
            if test is not None:
                yield test


def _of_both(a: ModelCell, b: ModelCell) -> dict[str, str]:
    """The labels that a contrast takes from its two cells."""
    return {
        "stage_a": a.model.stage,
        "stage_b": b.model.stage,
        "prompting_a": a.prompting,
        "prompting_b": b.prompting,
        "decoding": a.decoding,
    }
