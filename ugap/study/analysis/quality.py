"""Uncertainty and quality: every measure of rated texts, its distance from people, and what both say about the ratings.

| measure | of a text |
|---|---|
| `nll`, `entropy`, `deviation`, `bits_per_byte` | see `ugap.study.measures` |
| `pmi`, `cpmi` | the same, of texts that were scored without their prompt too |
| `varentropy` | mean varentropy, nats² |
| `log_rank` | mean of `ln rank` |
| `excess` | mean of `s - g(h)`: how much more surprising than people are at the same entropy |
| `repetition` | share of tokens that occur among the 128 before them |
| `X distance` | how far `X` is from its mean over the tokens of the human profile, up or down |
| `profile distance` | root of the distance `d²` of the whole text from people, without PMI |
| `length` | scored tokens |

Perplexity is not among them: it orders texts as `nll` does.

A rating is compared with a measure *overall*, within author group (*within*), and in each author group alone. Where one
kind of author is rated higher and is also more surprising, the two go together overall, whatever holds among the texts
of either: only within author group does a correlation speak of uncertainty, not of who wrote. A group column narrows
all these further to texts of one group, such as the answers to one prompt. Holm's correction is over the measures of
one rating, in one such scope.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ugap.data import TextRow, load_texts
from ugap.errors import InputError
from ugap.profile import KindProfile
from ugap.profile.texts import FEATURES
from ugap.scoring import TokenScores
from ugap.statistics import InvertedU, correlation, holm, inverted_u, repetition
from ugap.study.analysis.columns import first_records, read_label, read_rating
from ugap.study.excerpts import after_prompt
from ugap.study.measures import text_value

FEWEST_TEXTS = 10  # rated ones; fewer say nothing
DISTANCE = " distance"
PROFILE_DISTANCE = "profile" + DISTANCE
LENGTH = "length"
OVERALL, WITHIN, AUTHOR = "overall", "within", "author"
_STANDING_BEFORE = [feature for feature in FEATURES if feature != "pmi"]  # a request is no beginning of a story
_TESTS = ("spearman", "pearson", "spearman_length", "quadratic", "quadratic_length")


@dataclass(frozen=True)
class RatedText:
    """A text and how it was rated.

    Args:
        row (`TextRow`): The text, with its prompt.
        ratings (`Mapping[str, float]`): By name; NaN where it was not rated.
        author (`str`): The author group, `""` where there is none.
        group (`str`): What it is compared within, `""` where there is nothing.
    """

    row: TextRow
    ratings: Mapping[str, float]
    author: str
    group: str

    @property
    def prefix(self) -> str:
        """The text's context when it is scored: its prompt, and the separator between the two in a study."""
        return after_prompt(self.row.prompt or "", self.row.text)


def load_rated(
    source: str,
    ratings: Sequence[str],
    *,
    text_column: str = "text",
    author_column: str | None = None,
    group_column: str | None = None,
    prompt_column: str | None = None,
    limit: int | None = None,
) -> list[RatedText]:
    """Read rated texts; those without any rating are left out.

    Args:
        source (`str`): See [`load_texts`][].
        ratings (`Sequence[str]`): Columns of the ratings: numbers; null or empty where a text was not rated.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        author_column (`str`, *optional*): Column of the author group.
        group_column (`str`, *optional*): Column of what a text is compared within.
        prompt_column (`str`, *optional*): Column of the prompt.
        limit (`int`, *optional*): At most that many rows of the source.

    Raises:
        InputError: See `load_texts`; if a column is missing, a rating is no number, or fewer than 10 texts have it.
    """
    if not ratings:
        raise InputError("no column of ratings is given")
    named = [column for column in (author_column, group_column, prompt_column) if column is not None]
    # Read first, so that an error about a column comes before one about a text.
    records = list(first_records(source, [text_column, *named], ratings, limit))
    for column in ratings:
        if not any(column in record for _, record in records):
            raise InputError(f"{source}: no column {column!r}")
    rows = load_texts(
        source,
        text_column=text_column,
        # Without a column of prompts, one that is there: a missing one would be warned of.
        prompt_column=text_column if prompt_column is None else prompt_column,
        domain="rated",
        limit=limit,
    )
    # The column that stood in for the prompts held the texts themselves.
    if prompt_column is None:
        rows = [replace(row, prompt=None) for row in rows]
    out = []
    for row, (where, record) in zip(rows, records, strict=True):
        rated = {column: read_rating(record.get(column), column, where) for column in ratings}
        if any(map(math.isfinite, rated.values())):
            author, group = (read_label(record, column, where) for column in (author_column, group_column))
            out.append(RatedText(row, rated, author, group))
    for column in ratings:
        n = sum(math.isfinite(text.ratings[column]) for text in out)
        if n < FEWEST_TEXTS:
            raise InputError(f"{source}: column {column!r} rates {n} texts, and at least {FEWEST_TEXTS} are needed")
    return out


def human_means(profile: KindProfile) -> dict[str, float]:
    """The mean of each measure over the tokens of a human profile, where it keeps one."""
    same = ("entropy", "varentropy", "deviation", "bits_per_byte", "pmi")
    levels = {
        "nll": profile.means["surprisal"],
        **{name: profile.means[name] for name in same if name in profile.means},
    }
    at, ranks = profile.levels, np.log(np.maximum(profile.quantiles["rank"], 1.0))
    levels["log_rank"] = float(np.trapezoid(ranks, at) / (at[-1] - at[0]))
    return {**{name: level for name, level in levels.items() if math.isfinite(level)}, "excess": 0.0}


def quality_measures(scores: TokenScores, profile: KindProfile | None = None) -> dict[str, float]:
    """Every measure of a text by name, see the table of the module; without a profile those that need none.

    Args:
        scores (`TokenScores`): The scored text; with marginals, PMI and CPMI are among the measures.
        profile (`KindProfile`, *optional*): The human profile of the scorer.

    Returns:
        `dict[str, float]`: NaN where a text lacks a measure.
    """
    marginal = ("pmi", "cpmi") if scores.marginal_surprisal is not None else ()
    scored = np.isfinite(scores.surprisal)
    s, h = scores.surprisal[scored].astype(np.float64), scores.entropy[scored].astype(np.float64)
    ranks = scores.rank[scored].astype(np.float64)
    values = {name: text_value(scores, name) for name in ("nll", "bits_per_byte", "entropy")}
    values["varentropy"] = _mean(scores.varentropy[scored].astype(np.float64))
    values["deviation"] = text_value(scores, "deviation")
    values["log_rank"] = _mean(np.log(ranks))
    values.update({name: text_value(scores, name) for name in marginal})
    if profile is not None:
        values["excess"] = _mean(s - profile.curve(h))
    values["repetition"] = repetition([scores.token_ids.tolist()])
    if profile is not None:
        levels = human_means(profile)
        values.update(
            {name + DISTANCE: abs(value - levels[name]) for name, value in list(values.items()) if name in levels}
        )
        if profile.texts is not None and s.size:
            squared = profile.texts.distance(profile.text_features(scores), s.size, _STANDING_BEFORE)
            values[PROFILE_DISTANCE] = math.sqrt(squared)
    return {**values, LENGTH: float(s.size)}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def relate(
    texts: Sequence[RatedText], measures: Sequence[Mapping[str, float]], *, resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """Relate every measure to every rating, overall, within author group, and in each author group.

    Args:
        texts (`Sequence[RatedText]`): The rated texts.
        measures (`Sequence[Mapping[str, float]]`): Their measures, see `quality_measures`.
        resamples (`int`, *optional*, defaults to `2000`): Bootstrap resamples.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Returns:
        `list[dict]`: A row for each rating, scope and measure: `rating`, `scope` (`overall`, `within`, `author`),
        `author` (where the scope is one author group), `measure`, `n`, the correlations `spearman`, `pearson` and
        `spearman_length` (partial for the logarithm of the length), and `quadratic` and `quadratic_length` (the
        inverted U, without and with that control, not of distances); `None` where nothing is tested. Each has a
        `p_holm` over the measures of its rating and scope.
    """
    rows: list[dict[str, Any]] = []
    for rating in texts[0].ratings:
        for scope, author, members in _scopes(texts, rating):
            scope_rows = []
            for measure in measures[0]:
                rated = [i for i in members if math.isfinite(measures[i][measure])]
                if len(rated) < FEWEST_TEXTS:
                    continue
                relation = _relation(
                    [measures[i][measure] for i in rated],
                    [texts[i].ratings[rating] for i in rated],
                    strata=[(texts[i].author if scope == WITHIN else "", texts[i].group) for i in rated],
                    # The logarithm: ratings grow with length, and level off.
                    control=None if measure == LENGTH else np.log([measures[i][LENGTH] for i in rated]),
                    bent=not measure.endswith(DISTANCE),
                    resamples=resamples,
                    seed=seed,
                )
                labels = {"rating": rating, "scope": scope, "author": author, "measure": measure}
                scope_rows.append({**labels, "n": len(rated), **relation})
            # Within one rating and scope: each is a question of its own.
            for test in _TESTS:
                tested = [row[test] for row in scope_rows if row[test] is not None]
                for one, p in zip(tested, holm([one["p_value"] for one in tested]), strict=True):
                    one["p_holm"] = float(p)
            rows += scope_rows
    return rows


def _scopes(texts: Sequence[RatedText], rating: str) -> Iterator[tuple[str, str | None, list[int]]]:
    """The scopes of a rating, with the author group where it is one, and the places of their texts."""
    rated = [i for i, text in enumerate(texts) if math.isfinite(text.ratings[rating])]
    yield OVERALL, None, rated
    authors = list(dict.fromkeys(text.author for text in texts))
    if len(authors) > 1:
        yield WITHIN, None, rated
        for author in authors:
            members = [i for i in rated if texts[i].author == author]
            if len(members) >= FEWEST_TEXTS:
                yield AUTHOR, author, members


def _relation(
    x: Sequence[float], y: Sequence[float], *, control: np.ndarray | None, bent: bool, **how: Any
) -> dict[str, Any]:
    """The tests of `_TESTS`, as a row has them; `None` for those that are not made."""
    held = None if control is None else {**how, "control": control}
    return {
        "spearman": asdict(correlation(x, y, **how)),
        "pearson": asdict(correlation(x, y, method="pearson", **how)),
        "spearman_length": None if held is None else asdict(correlation(x, y, **held)),
        "quadratic": _quadratic(inverted_u(x, y, **how)) if bent else None,
        "quadratic_length": None if held is None or not bent else _quadratic(inverted_u(x, y, **held)),
    }


def _quadratic(curve_test: InvertedU) -> dict[str, Any]:
    curve = asdict(curve_test)
    return {**curve.pop("quadratic"), **curve, "found": curve_test.found}
