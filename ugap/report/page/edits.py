"""The page of edits: both texts side by side, changes marked, tokens tinted.

Design choices:

- One file without a script: a choice of the tint is a radio button that the style sheet reads. The style is that of the
  page of studies.
- A page holds at most a budget of tokens; edits are taken in the order of a fixed shuffle, and shown in their own.
- A piece belongs to a change if one of its characters does. Pieces and numbers are those of the reader of studies.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

import ugap
from ugap.files import replacing
from ugap.report.page.page import template_environment
from ugap.report.page.reader import MOST_TOKENS, entry
from ugap.report.terminal import with_interval
from ugap.scoring import TokenScores
from ugap.study.analysis.edits import OVERALL, Changes, Edit, Span, inside

# Full tint at these values, as in the reader of studies.
_SURPRISAL, _HIGH, _LOW = 8.0, 4.0, -1.5


def write_edits(
    record: Mapping[str, Any],
    edits: Sequence[Edit],
    scores: Sequence[tuple[TokenScores, TokenScores]],
    changed: Sequence[Changes],
    path: str | Path,
    *,
    most_tokens: int = MOST_TOKENS,
) -> None:
    """Write the page.

    Args:
        record (`Mapping`): The content of `edits.json`.
        edits (`Sequence[Edit]`): The edits.
        scores (`Sequence[tuple[TokenScores, TokenScores]]`): Scores of the text before and the text after of each.
        changed (`Sequence[Changes]`): What each changed.
        path (`str` or `Path`): The HTML file.
        most_tokens (`int`, *optional*): Tokens at most; one edit is always there.
    """
    shown: list[int] = []
    room = most_tokens
    # Fixed: the page of one run is the same bytes each time.
    for i in np.random.default_rng(0).permutation(len(edits)).tolist():
        room -= sum(map(len, scores[i]))
        if shown and room < 0:
            break
        shown.append(i)
    style = files("ugap.report.page").joinpath("page.css").read_text(encoding="utf-8")
    html = (
        template_environment()
        .get_template("edits.html.j2")
        .render(
            version=ugap.__version__,
            style=style,
            headline=headline(record),
            scorer=record["settings"]["scorer"][0],
            total=len(edits),
            edits=[_shown(edits[i], scores[i], changed[i], record["edits"][i]) for i in sorted(shown)],
        )
    )
    with replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def headline(record: Mapping[str, Any]) -> str:
    """The change of surprisal and the AUC of surprisal, in two sentences."""
    moved = next(row for row in record["moves"] if (row["scope"], row["measure"]) == (OVERALL, "nll"))
    said = f"Editing moves surprisal by {with_interval(moved['change'], moved['ci95'], '+.2f')} nats per token."
    for row in record["pointers"]:
        if (row["scope"], row["tokens"], row["pointer"]) == (OVERALL, "removed", "surprisal"):
            auc = with_interval(row["auc"], row["ci95"], ".2f")
            said += f" Surprisal points at the removed words with an AUC of {auc}."
    return said


def _shown(
    edit: Edit, scores: tuple[TokenScores, TokenScores], changed: Changes, numbers: Mapping[str, Any]
) -> dict[str, Any]:
    sides = zip(("Before", "After"), scores, (changed.before, changed.after), edit.scores, strict=True)
    return {
        "id": edit.row.id,
        "group": edit.group,
        "prompt": edit.row.prompt or "",
        "share": numbers["share"],
        "sides": [
            {"name": name, "nll": one.nll, "rating": None if rating != rating else rating, **_pieces(one, spans)}
            for name, one, spans, rating in sides
        ],
    }


def _pieces(scores: TokenScores, spans: Sequence[Span]) -> dict[str, Any]:
    text = entry(scores)
    ends = np.cumsum([len(text["lead"]), *map(len, text["pieces"])])
    offsets = np.stack([ends[:-1], ends[1:]], axis=1)
    marks = inside(spans, offsets).tolist()
    pieces = []
    for piece, s, z, mark in zip(text["pieces"], text["s"], text["z"], marks, strict=True):
        # The space before a word stays outside of the tint, or it would hang over the end of the line.
        word = piece.lstrip(" ") if piece.strip() else piece
        space = piece[: len(piece) - len(word)]
        pieces.append((space, word, _percent(s, _SURPRISAL), _percent(z, _HIGH), _percent(z, _LOW), mark))
    return {"lead": text["lead"], "pieces": pieces, "rest": text["rest"]}


def _percent(hundredths: int | None, full: float) -> int:
    """The strength of a tint, 0 to 88 percent, that is full at `full`; 0 on the other side of 0."""
    return 0 if hundredths is None else round(88 * min(1.0, max(0.0, hundredths / 100 / full)))
