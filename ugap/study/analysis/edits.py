"""What an edit does to a text: how far it moves the measures, and whether surprisal points at what was changed.

Design choices:

- Spans are compared word by word with `difflib`. Fewer than three unchanged words between two changes count as changed:
  a passage that was written anew shares words such as "the" with the old one by chance.
- Surprisal falls along a text, so measures are compared over the same number of tokens. Spans are looked for in whole
  texts.
- A text may be edited by several people. Its edits are not independent, so every interval resamples texts before the
  edit. A correlation takes each such text once, with the mean of its edits.
- Tokens are compared with tokens of the same text: an AUC for each edit, then their mean. Between texts, the level of a
  text would count as well.

| measure | of the first tokens that both texts have |
|---|---|
| `nll`, `entropy`, `deviation`, `pmi`, `bits_per_byte` | see `ugap.study.measures` |
| `closeness` | to human texts of that length, without PMI: see [`TextReference`][ugap.profile.texts.TextReference] |
"""

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from ugap.data import TextRow, load_texts
from ugap.profile import KindProfile
from ugap.profile.texts import FEATURES
from ugap.scoring import TokenScores
from ugap.statistics import correlation, paired_gap
from ugap.statistics.auc import auc
from ugap.statistics.bootstrap import Clusters, Group, interval
from ugap.study.analysis.columns import first_records, read_label, read_rating
from ugap.study.excerpts import after_prompt
from ugap.study.measures import text_value

MEASURES = ("nll", "entropy", "deviation", "pmi", "bits_per_byte", "closeness")
POINTERS = ("surprisal", "entropy", "deviation")
SCORE, SHARE = "score", "share"  # what else moves: the rating, and the words
OVERALL, THIRDS = "all", ("edited least", "edited middle", "edited most")
MIN_KEPT = 3  # unchanged words between two changes, to count as kept
FEWEST_TEXTS = 10  # for a correlation
_WITHOUT_PMI = [feature for feature in FEATURES if feature != "pmi"]  # a request is no beginning of a story
_WORD = re.compile(r"\w+|[^\w\s]")

Span = tuple[int, int]


@dataclass(frozen=True)
class Edit:
    """A text before and after an edit.

    Args:
        row (`TextRow`): The text before, with its prompt.
        after (`str`): The text after.
        group (`str`): Such as the model that wrote the text before; `""` where there is none.
        scores (`tuple[float, float]`): Ratings before and after; NaN where there is none.
    """

    row: TextRow
    after: str
    group: str
    scores: tuple[float, float]

    @property
    def texts(self) -> tuple[str, str]:
        """The text before and the text after."""
        return self.row.text, self.after

    @property
    def prefixes(self) -> tuple[str, str]:
        """What a scorer reads before each of the two: the prompt, and the separator."""
        return after_prompt(self.row.prompt or "", self.row.text), after_prompt(self.row.prompt or "", self.after)


@dataclass(frozen=True)
class Changes:
    """What an edit changed.

    Args:
        before (`list[tuple[int, int]]`): Spans that it removed or replaced, as character positions in the text before.
        after (`list[tuple[int, int]]`): Spans that it added, in the text after.
        share (`float`): Changed words over all words of both texts, in [0, 1].
    """

    before: list[Span]
    after: list[Span]
    share: float


@dataclass(frozen=True)
class Measured:
    """The numbers of an edit.

    Args:
        share (`float`): See `Changes`.
        n_tokens (`int`): Tokens that both texts have, over which the measures are compared.
        before (`dict[str, float]`): Measures of the text before; NaN where it has none.
        after (`dict[str, float]`): Those of the text after.
        removed (`dict[str, float]`): For each of `POINTERS`, the AUC of the tokens removed or replaced against those
            kept, in the text before. NaN where either is missing.
        added (`dict[str, float]`): That of the tokens added against those kept, in the text after.
    """

    share: float
    n_tokens: int
    before: dict[str, float]
    after: dict[str, float]
    removed: dict[str, float]
    added: dict[str, float]


def load_edits(
    source: str,
    before: str,
    after: str,
    *,
    group: str | None = None,
    prompt: str | None = None,
    score_before: str | None = None,
    score_after: str | None = None,
    limit: int | None = None,
) -> list[Edit]:
    """Read texts before and after an edit.

    Args:
        source (`str`): See [`load_texts`][].
        before (`str`): Column of the text before.
        after (`str`): Column of the text after.
        group (`str`, *optional*): Column of the group, such as the model that wrote the text before.
        prompt (`str`, *optional*): Column of what the text answers.
        score_before (`str`, *optional*): Column of the rating before: a number, or null.
        score_after (`str`, *optional*): Column of the rating after.
        limit (`int`, *optional*): At most that many rows of the source.

    Raises:
        InputError: See `load_texts`; if a column is missing, or a rating is no number.
    """
    scores = [column for column in (score_before, score_after) if column is not None]
    named = [column for column in (group, prompt, *scores) if column is not None]
    extra = list(first_records(source, [before, after, *named], [], limit))
    rows = load_texts(
        source,
        text_column=before,
        # Without a column of prompts, one that is there: a missing one would be warned of.
        prompt_column=prompt or before,
        domain="edited",
        candidates={"after": after},
        limit=limit,
    )
    out = []
    for row, (where, record) in zip(rows, extra, strict=True):
        rated = [
            math.nan if column is None else read_rating(record[column], column, where)
            for column in (score_before, score_after)
        ]
        text = TextRow(row.id, row.domain, row.text, row.prompt if prompt else None, where=where)
        out.append(Edit(text, row.candidates["after"], read_label(record, group, where), (rated[0], rated[1])))
    return out


def changes(before: str, after: str) -> Changes:
    """The spans that an edit changed.

    Args:
        before (`str`): The text before.
        after (`str`): The text after.

    Example:
        >>> changes("The old king of the hills slept.", "The old queen of the hills slept.")
        Changes(before=[(8, 12)], after=[(8, 13)], share=0.125)
    """
    words = [list(_WORD.finditer(text)) for text in (before, after)]
    old, new = ([match[0] for match in side] for side in words)
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    # Begin and end of each change, in words of either text.
    merged: list[list[int]] = []
    for tag, *ends in matcher.get_opcodes():
        if tag == "equal":
            continue
        if merged and ends[0] - merged[-1][1] < MIN_KEPT:
            merged[-1][1], merged[-1][3] = ends[1], ends[3]
        else:
            merged.append(ends)
    n_changed = sum(i2 - i1 + j2 - j1 for i1, i2, j1, j2 in merged)

    def spans(side: int) -> list[Span]:
        pairs = [(change[2 * side], change[2 * side + 1]) for change in merged]
        return [(words[side][begin].start(), words[side][end - 1].end()) for begin, end in pairs if begin < end]

    return Changes(spans(0), spans(1), n_changed / max(1, len(old) + len(new)))


def inside(spans: Sequence[Span], offsets: np.ndarray) -> np.ndarray:
    """Whether each token shares a character with one of the spans, shape `(T,)`.

    Args:
        spans (`Sequence[tuple[int, int]]`): Spans that do not overlap, in order.
        offsets (`np.ndarray` of shape `(T, 2)`): Start and end of each token.

    Example:
        >>> inside([(4, 7)], np.array([[0, 3], [3, 5], [5, 7], [7, 8]]))
        array([False,  True,  True, False])
    """
    out = np.zeros(len(offsets), bool)
    for begin, end in spans:
        out |= (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    return out


def measure_edit(before: TokenScores, after: TokenScores, change: Changes, profile: KindProfile | None) -> Measured:
    """The numbers of an edit.

    Args:
        before (`TokenScores`): The text before.
        after (`TokenScores`): The text after, read by the same scorer.
        change (`Changes`): What was changed.
        profile (`KindProfile`, *optional*): Human texts, for the closeness.
    """
    n = min(len(before), len(after))
    return Measured(
        change.share,
        n,
        _values(before.first(n), profile),
        _values(after.first(n), profile),
        _pointers(before, change.before),
        _pointers(after, change.after),
    )


def _values(scores: TokenScores, profile: KindProfile | None) -> dict[str, float]:
    out = {name: text_value(scores, name) for name in MEASURES if name != "closeness"}
    texts = None if profile is None else profile.texts
    if profile is not None and texts is not None:
        out["closeness"] = texts.closeness(profile.text_features(scores), len(scores), _WITHOUT_PMI)
    return out


def _pointers(scores: TokenScores, spans: Sequence[Span]) -> dict[str, float]:
    changed = inside(spans, scores.offsets)
    out = {}
    for name in POINTERS:
        values = getattr(scores, name)
        sides = [values[part & np.isfinite(values)] for part in (changed, ~changed)]
        sources = [[0] * len(side) for side in sides]
        # One resample: of the tokens of one text there is no interval.
        known = all(map(len, sides))
        out[name] = auc(sides[0], sources[0], sides[1], sources[1], resamples=1).auc if known else math.nan
    return out


def summary(edits: Sequence[Edit], measured: Sequence[Measured], *, resamples: int, seed: int) -> dict[str, Any]:
    """What the edits do on average, with 95% intervals.

    Args:
        edits (`Sequence[Edit]`): The edits.
        measured (`Sequence[Measured]`): Their numbers.
        resamples (`int`): Bootstrap resamples.
        seed (`int`): Seed of the bootstrap.

    Returns:
        `dict`: Three lists of rows. `moves`: for each scope and measure `before`, `after`, `change` and `ci95`.
        `pointers`: the mean AUC of each pointer among removed and added tokens. `scores`: for each measure, Spearman's
        correlation of its change with that of the rating, within groups; empty without ratings.
    """
    out: dict[str, list[dict[str, Any]]] = {"moves": [], "pointers": [], "scores": []}
    for scope, members in _scopes(edits, measured):
        for name in (*MEASURES, SCORE):
            known = {i: both for i in members if all(map(math.isfinite, both := _sides(edits[i], measured[i], name)))}
            if not known:
                continue
            before, after = zip(*known.values(), strict=True)
            sources = [edits[i].row.text for i in known]
            estimate = paired_gap(after, before, sources, resamples=resamples, seed=seed)
            share = float(np.mean([measured[i].share for i in known]))
            values = {"before": estimate.model_value, "after": estimate.human, "change": estimate.gap}
            counts = {"n": estimate.n, "n_texts": estimate.n_sources, "share": share}
            out["moves"].append({"scope": scope, "measure": name, **counts, **values, "ci95": estimate.ci95})
        for tokens, pointer in itertools.product(("removed", "added"), POINTERS):
            aucs = {i: getattr(measured[i], tokens)[pointer] for i in members}
            aucs = {i: value for i, value in aucs.items() if math.isfinite(value)}
            if not aucs:
                continue
            clusters = Clusters.gather(np.array(list(aucs.values())), [edits[i].row.text for i in aucs], "texts")
            low, high = interval([Group([clusters], [1])], resamples=resamples, seed=seed)
            labels = {"scope": scope, "tokens": tokens, "pointer": pointer}
            counts = {"n": len(aucs), "n_texts": len(clusters.sources)}
            out["pointers"].append({**labels, **counts, "auc": clusters.mean, "ci95": (max(low, 0.0), min(high, 1.0))})
    for name in (*MEASURES, SHARE):
        moved = _by_text(edits, measured, name)
        if len(moved) >= FEWEST_TEXTS:
            change, rise = np.array([np.mean(pairs, axis=0) for pairs in moved.values()]).T
            found = correlation(change, rise, strata=[group for _, group in moved], resamples=resamples, seed=seed)
            out["scores"].append({"measure": name, **asdict(found)})
    return out


def _scopes(edits: Sequence[Edit], measured: Sequence[Measured]) -> Iterator[tuple[str, list[int]]]:
    """Name and members of each scope: all, each group, and each third by the share that was changed."""
    yield OVERALL, list(range(len(edits)))
    groups = list(dict.fromkeys(edit.group for edit in edits))
    for group in groups if len(groups) > 1 else ():
        yield group, [i for i, edit in enumerate(edits) if edit.group == group]
    if len(edits) >= len(THIRDS):
        order = sorted(range(len(edits)), key=lambda i: measured[i].share)
        for name, part in zip(THIRDS, np.array_split(order, len(THIRDS)), strict=True):
            yield name, part.tolist()


def _sides(edit: Edit, measured: Measured, name: str) -> tuple[float, float]:
    """A measure, or the rating, before and after."""
    if name == SCORE:
        return edit.scores
    return measured.before.get(name, math.nan), measured.after.get(name, math.nan)


def _by_text(
    edits: Sequence[Edit], measured: Sequence[Measured], name: str
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """The changes of a measure and of the rating in the edits of each text, by text and group."""
    out: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for edit, one in zip(edits, measured, strict=True):
        before, after = (0.0, one.share) if name == SHARE else _sides(edit, one, name)
        pair = after - before, edit.scores[1] - edit.scores[0]
        if all(map(math.isfinite, pair)):
            out[edit.row.text, edit.group].append(pair)
    return out
