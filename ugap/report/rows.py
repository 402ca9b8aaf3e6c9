"""The rows of `gap.json` as the report reads them.

Null is NaN, one rule decides the verdict, and a name is one line without a character that steers a terminal:
sentences, tables and plots take both from here.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ugap.statistics.significance import SIGNIFICANT
from ugap.study.contrasts import ALL, DOMAIN
from ugap.study.pairs import GIVEN, SELF
from ugap.terminal import one_line

NAN = float("nan")


def number(value: float | None) -> float:
    """The value as a float; null is NaN."""
    return NAN if value is None else float(value)


def ends(interval: Iterable[float | None] | None) -> tuple[float, float]:
    """Lower and upper end of an interval; a missing interval is two NaN."""
    low, high = (NAN, NAN) if interval is None else interval
    return number(low), number(high)


def sign(interval: tuple[float, float]) -> int:
    """1 where the whole interval lies above 0, -1 where below, 0 where it covers 0 or is missing."""
    # NaN compares false on both sides, so a missing interval gives 0.
    low, high = interval
    return int(low > 0) - int(high < 0)


def told(interval: tuple[float, float], p_adjusted: float) -> int:
    """The verdict: the side of 0 on which the interval lies, 1 or -1, where the corrected p is below 0.05; else 0.

    Example:
        >>> told((0.1, 0.5), 0.01), told((0.1, 0.5), 0.2), told((0.1, 0.5), float("nan"))
        (1, 0, 0)
    """
    # No p is corrected to less than the raw one, and that is below 0.05 only where the interval leaves 0 out.
    return sign(interval) if p_adjusted < SIGNIFICANT else 0


def _name(value: Any) -> str:
    return one_line(str(value or ""))


@dataclass(frozen=True)
class GapRow:
    """One estimate: `gap = human - model_value` in the measure's unit; the fields are those of `gap.json`.

    Family and stage are known in a study of many models; elsewhere they are empty.
    """

    domain: str
    model: str
    family: str
    stage: str
    prompting: str
    decoding: str
    scorer: str
    measure: str
    n: int
    n_sources: int
    human: float
    model_value: float
    gap: float
    ci95: tuple[float, float]
    ratio: float
    effect_size: float
    p_value: float
    p_adjusted: float
    wasserstein: float

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "GapRow":
        return cls(
            domain=_name(row["domain"]),
            model=_name(row["model"]),
            family=_name(row.get("family")),
            stage=_name(row.get("stage")),
            prompting=_name(row.get("prompting")),
            decoding=_name(row["decoding"]),
            scorer=_name(row["scorer"]),
            measure=str(row["measure"]),
            n=int(row["n"]),
            n_sources=int(row["n_sources"]),
            human=number(row["human"]),
            model_value=number(row["model_value"]),
            gap=number(row["gap"]),
            ci95=ends(row["ci95"]),
            ratio=number(row["ratio"]),
            effect_size=number(row["effect_size"]),
            p_value=number(row["p_value"]),
            p_adjusted=number(row["p_adjusted"]),
            wasserstein=number(row.get("wasserstein")),
        )

    @property
    def verdict(self) -> int:
        """1: human text is higher; -1: model text is higher; 0: no difference can be told."""
        return told(self.ci95, self.p_adjusted)

    @property
    def self_scored(self) -> bool:
        return self.scorer in (SELF, self.model)

    @property
    def given(self) -> bool:
        return self.decoding == GIVEN

    @property
    def pooled(self) -> bool:
        """Whether the row is of several models together."""
        return self.family == ALL


@dataclass(frozen=True)
class ContrastRow:
    """How much larger the gap of `a` is than that of `b`: two domains of one `model`, or two models in one `domain`."""

    contrast: str
    a: str
    b: str
    model: str
    domain: str
    family: str
    decoding: str
    scorer: str
    measure: str
    n_sources: tuple[int, ...]
    gap_a: float
    gap_b: float
    difference: float
    ci95: tuple[float, float]
    p_value: float
    p_adjusted: float

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "ContrastRow":
        return cls(
            contrast=str(row["contrast"]),
            a=_name(row["a"]),
            b=_name(row["b"]),
            model=_name(row.get("model")),
            domain=_name(row.get("domain")),
            family=_name(row.get("family")),
            decoding=_name(row["decoding"]),
            scorer=_name(row["scorer"]),
            measure=str(row["measure"]),
            n_sources=tuple(row["n_sources"]),
            gap_a=number(row["gap_a"]),
            gap_b=number(row["gap_b"]),
            difference=number(row["difference"]),
            ci95=ends(row["ci95"]),
            p_value=number(row["p_value"]),
            p_adjusted=number(row["p_adjusted"]),
        )

    @property
    def verdict(self) -> int:
        """1: the gap of `a` is larger; -1: that of `b` is; 0: no difference can be told."""
        return told(self.ci95, self.p_adjusted)

    @property
    def of_domains(self) -> bool:
        return self.contrast == DOMAIN

    @property
    def pooled(self) -> bool:
        """Whether the row is of several families together."""
        return self.family == ALL


def preferred_scorer(scorers: Iterable[str], model: str) -> str:
    """The scorer that words are about where there are several: the model itself, else the first."""
    # The order of the study's settings is kept.
    names = list(dict.fromkeys(scorers))
    return next((name for name in (SELF, model) if name in names), names[0])


def read_gaps(gaps: Iterable[Mapping[str, Any]], measure: str) -> list[GapRow]:
    """The rows of one measure whose gap could be estimated, in their order."""
    rows = [GapRow.read(row) for row in gaps if row["measure"] == measure]
    return [row for row in rows if math.isfinite(row.gap)]
