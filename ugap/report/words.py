"""The findings as plain sentences, generated from the estimates.

Design choices:

- What a sentence claims follows from one rule (`ugap.report.rows.told`): a p of 0.05 or more after its correction means
  that no difference can be told, whatever the gap. A row whose source texts are too few for any such p says so.
- Sentences are about surprisal (NLL). For every model and domain they take ancestral sampling, the one decoding that
  shows the model as it is, and the decoding with the largest gap; the first sentence counts the others.
- Where a model is scored by several scorers, the sentences are about its own scores; every other scorer gets a count.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ugap.report.rows import ContrastRow, GapRow, preferred_scorer, read_gaps, sign
from ugap.study.pairs import GIVEN, SELF

ANCESTRAL = "ancestral"
NO_GAP = "No gap in surprisal could be estimated."
CANNOT = "cannot be significant"
FILLED = "A filled mark: p is below 0.05 after its correction; a hollow one: no difference can be told."
MOST_SENTENCES = 13


@dataclass(frozen=True)
class Measure:
    """How a measure is written: its name, its unit, what a gap above and below 0 means, and decimals in tables."""

    title: str
    unit: str
    human_higher: str
    model_higher: str
    decimals: int = 3

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})"


MEASURES: Mapping[str, Measure] = {
    "nll": Measure("Surprisal, NLL", "nats per token", "people are more surprising", "the model is more surprising"),
    "entropy": Measure("Entropy", "nats per token", "human text is less certain", "model text is less certain"),
    "ppl": Measure("Perplexity", "log ratio", "people are more surprising", "the model is more surprising", 2),
    "bits_per_byte": Measure(
        "Surprisal", "bits per byte", "people are more surprising", "the model is more surprising"
    ),
    "pmi": Measure("PMI with the prefix", "nats per token", "human text has more", "model text has more"),
    "cpmi": Measure("CPMI", "nats per token", "human text has more", "model text has more"),
    "deviation": Measure("Deviation", "standard deviations", "human text deviates up", "model text deviates up"),
}


_DECODINGS = {ANCESTRAL: "with ancestral sampling (T=1)", GIVEN: "as given"}


def decimals(*values: float) -> int:
    """Two decimals, or up to four where a value that is not 0 would read as 0."""
    for places in (2, 3):
        if all(round(value, places) or not value for value in values if math.isfinite(value)):
            return places
    return 4


def fixed(value: float, places: int) -> str:
    """The value with this many decimals, and no minus sign before a zero."""
    # Adding 0.0 turns -0.0 into 0.0.
    return f"{round(value, places) + 0.0:.{places}f}"


def interval(low: float, high: float, places: int) -> str:
    """`[low, high]`, or words where there is none."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "[no interval]"
    return f"[{fixed(low, places)}, {fixed(high, places)}]"


def sized(value: float, ci95: tuple[float, float], verdict: int, places: int) -> str:
    """A difference in surprisal with its interval and unit; without its sign where the sentence names the direction.

    Example:
        >>> sized(-0.3, (-0.5, -0.1), -1, 2)
        '0.30 nats per token [0.10, 0.50]'
    """
    low, high = ci95
    if verdict < 0:
        value, low, high = -value, -high, -low
    return f"{fixed(value, places)} {MEASURES['nll'].unit} {interval(low, high, places)}"


def people_clause(
    who: str, gap: float, ci95: tuple[float, float], verdict: int, places: int, *, plural: bool = False
) -> str:
    """What a gap in surprisal says about people and a writer.

    Args:
        who (`str`): The writer.
        gap (`float`): Human less model, in nats per token.
        ci95 (`tuple[float, float]`): Its interval.
        verdict (`int`): 1 where people are more surprising, -1 where the writer is, 0 where neither can be told.
        places (`int`): Decimals.
        plural (`bool`, *optional*, defaults to `False`): Whether the writer is several models.

    Example:
        >>> people_clause("m", 0.5, (0.4, 0.6), 1, 2)
        'people are 0.50 nats per token [0.40, 0.60] more surprising than m'
    """
    size = sized(gap, ci95, verdict, places)
    if verdict > 0:
        return f"people are {size} more surprising than {who}"
    if verdict < 0:
        return f"{who} {'are' if plural else 'is'} {size} more surprising than people"
    return f"no difference can be told between people and {who}: the gap is {size}"


def gaps_clause(
    a: str, b: str, difference: float, ci95: tuple[float, float], verdict: int, places: int, *, domains: bool = False
) -> str:
    """What the difference of two gaps in surprisal says about two models, or about two domains.

    Args:
        a (`str`): The model, or domain, of the first gap.
        b (`str`): That of the second.
        difference (`float`): First gap less second, in nats per token.
        ci95 (`tuple[float, float]`): Its interval.
        verdict (`int`): 1 where the first gap is larger, -1 where the second is, 0 where neither can be told.
        places (`int`): Decimals.
        domains (`bool`, *optional*, defaults to `False`): Whether they are domains.

    Example:
        >>> gaps_clause("chat", "base", -0.8, (-1.0, -0.6), -1, 2)
        'the gap is smaller for chat than for base by 0.80 nats per token [0.60, 1.00]'
    """
    size = sized(difference, ci95, verdict, places)
    if not verdict:
        return f"no difference can be told between the gaps of {a} and {b}{' text' if domains else ''}: {size}"
    compared = f"in {a} than in {b} text" if domains else f"for {a} than for {b}"
    return f"the gap is {'larger' if verdict > 0 else 'smaller'} {compared} by {size}"


def decoded(decoding: str) -> str:
    """The decoding as a part of a sentence."""
    return _DECODINGS.get(decoding, f"with {decoding} decoding")


def writer(model: str, decoding: str) -> str:
    """Who wrote the model's text."""
    return model if decoding == GIVEN else f"{model} {decoded(decoding)}"


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _basis(row: GapRow) -> str:
    prefixes = "1 prefix" if row.n == 1 else f"{row.n} prefixes"
    if row.n_sources == row.n:
        return prefixes
    return f"{prefixes} of {counted(row.n_sources, 'source text')}"


def caveats(row: GapRow | ContrastRow) -> list[str]:
    """Why no difference can be told though the interval may leave 0 out: too few source texts, or the correction."""
    if math.isnan(row.p_adjusted):
        return [f"{CANNOT}: too few source texts"]
    if sign(row.ci95) and not row.verdict:
        return [f"not significant after the correction, p = {row.p_adjusted:.3f}"]
    return []


def gap_sentence(row: GapRow) -> str:
    """What one estimate of the gap in surprisal says, with its interval and what it rests on."""
    places = decimals(row.gap, *row.ci95)
    levels = f"{fixed(row.human, places)} against {fixed(row.model_value, places)}"
    ratio = f", ratio {fixed(row.ratio, 2)}" if math.isfinite(row.ratio) else ""
    basis = [levels + ratio, _basis(row)]
    if not row.self_scored:
        basis.append(f"scored by {row.scorer}")
    basis += caveats(row)
    who = writer(row.model, row.decoding)
    said = people_clause(who, row.gap, row.ci95, row.verdict, places, plural=row.pooled)
    return f"In {row.domain} text, {said} ({'; '.join(basis)})."


def contrast_sentence(row: ContrastRow) -> str:
    """What one contrast of two gaps in surprisal says; both gaps are stated, as the larger may be a negative one."""
    places = decimals(row.difference, *row.ci95)
    first, *rest = dict.fromkeys(row.n_sources)
    basis = [f"gaps {fixed(row.gap_a, places)} and {fixed(row.gap_b, places)}"]
    basis.append(f"{first} and {rest[0]} source texts" if rest else counted(first, "source text"))
    if row.scorer not in (SELF, row.model):
        basis.append(f"scored by {row.scorer}")
    basis += caveats(row)
    where = (
        f"For {writer(row.model, row.decoding)}" if row.of_domains else f"In {row.domain} text, {decoded(row.decoding)}"
    )
    said = gaps_clause(row.a, row.b, row.difference, row.ci95, row.verdict, places, domains=row.of_domains)
    return f"{where}, {said} ({'; '.join(basis)})."


def tally(rows: Sequence[GapRow], measure: Measure) -> str:
    """How many comparisons point which way, as a sentence without its full stop."""
    more, less = (sum(row.verdict == sign for row in rows) for sign in (1, -1))
    unknown, total = len(rows) - more - less, len(rows)

    def share(n: int) -> str:
        if n == total:
            return {1: "the one comparison", 2: "both comparisons"}.get(n, f"all {n} comparisons")
        return f"{n} of {total} comparisons"

    if unknown == total:
        return "No difference can be told" + (f" in any of {total} comparisons" if total > 1 else "")
    first, second = (more, measure.human_higher), (less, measure.model_higher)
    # The more frequent direction is told first.
    if less > more:
        first, second = second, first
    parts = [f"{first[1][0].upper()}{first[1][1:]} in {share(first[0])}"]
    if second[0]:
        parts.append(f"{second[1]} in {second[0]}")
    if unknown:
        parts.append(f"no difference can be told in {unknown}")
    return parts[0] + ("; " + ", and ".join(parts[1:]) if parts[1:] else "")


def _telling(rows: Sequence[GapRow]) -> list[GapRow]:
    """Ancestral sampling (else the smallest gap), then the largest gap of the others."""
    # The largest gap is the last.
    by_gap = sorted(rows, key=lambda row: row.gap)
    first = next((row for row in by_gap if row.decoding == ANCESTRAL), by_gap[0])
    return [first, *[row for row in by_gap if row is not first][-1:]]


def _own(contrasts: Iterable[ContrastRow]) -> list[ContrastRow]:
    """One contrast for every question: of several scorers, the preferred one."""
    groups: dict[tuple[str, ...], list[ContrastRow]] = {}
    for row in contrasts:
        groups.setdefault((row.contrast, row.a, row.b, row.model, row.domain, row.decoding), []).append(row)
    return [
        next(row for row in group if row.scorer == preferred_scorer([row.scorer for row in group], group[0].model))
        for group in groups.values()
    ]


def like_sentences(settings: Mapping[str, Any]) -> list[str]:
    """For each model that wrote like given texts, how certain their human level is.

    Example:
        >>> like_sentences({"like_levels": {"base": "32 texts: human level 3.54 +- 0.10"}})
        ['base writes like 32 texts: human level 3.54 +- 0.10.']
    """
    levels = settings.get("like_levels")
    return [f"{model} writes like {words}." for model, words in levels.items()] if isinstance(levels, dict) else []


def findings(gaps: Sequence[Mapping[str, Any]], contrasts: Sequence[Mapping[str, Any]]) -> list[str]:
    """State what was found about surprisal, in about ten plain sentences.

    Args:
        gaps (`Sequence[Mapping]`): The gap rows of `gap.json`; null and NaN both mean that there is no such number.
        contrasts (`Sequence[Mapping]`): Its contrast rows.

    Returns:
        `list[str]`: Plain text: a count over all comparisons, gaps by model and domain, contrasts, other scorers.

    Example:
        >>> row = {"domain": "creative", "model": "m", "decoding": "top-p-0.9", "scorer": "self", "measure": "nll",
        ...        "n": 16, "n_sources": 8, "human": 2.97, "model_value": 2.49, "gap": 0.48, "ci95": [0.41, 0.55],
        ...        "ratio": 1.19, "effect_size": 1.2, "p_value": 0.001, "p_adjusted": 0.01, "wasserstein": 0.5}
        >>> for sentence in findings([row], []):
        ...     print(sentence)  # doctest: +NORMALIZE_WHITESPACE
        In creative text, people are 0.48 nats per token [0.41, 0.55] more surprising than m with
        top-p-0.9 decoding (2.97 against 2.49, ratio 1.19; 16 prefixes of 8 source texts).
    """
    rows = read_gaps(gaps, "nll")
    if not rows:
        return [NO_GAP]
    scorers: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        scorers.setdefault((row.model, row.decoding), []).append(row.scorer)
    preferred_rows: list[GapRow] = []
    others: dict[str, list[GapRow]] = {}
    for row in rows:
        # By decoding too: given texts have no scorer of their own.
        preferred = row.scorer == preferred_scorer(scorers[row.model, row.decoding], row.model)
        (preferred_rows if preferred else others.setdefault(row.scorer, [])).append(row)

    # (what to keep first, sentence), in the order of reading
    sentences: list[tuple[int, str]] = []
    if len(preferred_rows) > 2:
        sentences.append((0, tally(preferred_rows, MEASURES["nll"]) + "."))
    groups: dict[tuple[str, str], list[GapRow]] = {}
    for row in preferred_rows:
        groups.setdefault((row.model, row.domain), []).append(row)
    stated: set[str] = set()
    for group in groups.values():
        for rank, row in enumerate(_telling(group)):
            stated.add(row.decoding)
            sentences.append((1 if rank == 0 else 4, gap_sentence(row)))

    nll = [ContrastRow.read(row) for row in contrasts if row["measure"] == "nll"]
    for contrast in _own(row for row in nll if math.isfinite(row.difference) and row.decoding in stated):
        plain = contrast.decoding == ANCESTRAL
        rank = (2 if contrast.of_domains else 3) if plain else 5
        sentences.append((rank, contrast_sentence(contrast)))
    for scorer, group in others.items():
        count = tally(group, MEASURES["nll"])
        sentences.append((0, f"Scored by {scorer} instead, {count[0].lower()}{count[1:]}."))
    return _most_telling(sentences)


def _most_telling(sentences: Sequence[tuple[int, str]]) -> list[str]:
    """The sentences of the first ranks that there is room for, in the order of reading.

    A rank that does not fit is left out as a whole, so that every model and domain has the same sentences; only counts
    and the first rank of gaps are cut in the middle.
    """
    kept: list[int] = []
    for rank in sorted({rank for rank, _ in sentences}):
        members = [i for i, sentence in enumerate(sentences) if sentence[0] == rank]
        room = MOST_SENTENCES - len(kept)
        if len(members) > room and rank > 1:
            break
        kept += members[:room]
    return [sentences[i][1] for i in sorted(kept)]
