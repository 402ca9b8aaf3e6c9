"""Contrasts between gaps, in every kind of study: the figures of a row, and one correction over a table."""

from collections.abc import Iterable
from typing import Any

from ugap.statistics import contrast_independent, contrast_paired, holm

# Contrasts are made for the measures that a model's level is read off.
CONTRAST_MEASURES = ("nll", "entropy", "bits_per_byte", "deviation")

# Gap and source text of every prefix.
Gaps = Iterable[tuple[float, str]]


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
    found = contrast(gaps_a, sources_a, gaps_b, sources_b, seed=seed, resamples=resamples)
    return {
        "difference": found.difference,
        "ci95": list(found.ci95),
        "p_value": found.p_value,
        "n_sources": list(found.n_sources),
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
