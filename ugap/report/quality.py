"""Tables and plots of uncertainty and quality: correlations by measure, and ratings over surprisal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.table import Table

from ugap.report.figure import FAINT, INK, MARKERS, PALETTE, SOFT, framed, wrapped
from ugap.report.forest import Mark, draw_forest, key
from ugap.report.rows import ends, number, sign
from ugap.report.tables import MISSING, p_value
from ugap.report.terminal import figure, text_table, with_interval
from ugap.study.analysis.quality import AUTHOR, OVERALL, WITHIN
from ugap.terminal import one_line

_POINTS = 8  # of a curve at most
Row = Mapping[str, Any]


def relation_table(rows: Sequence[Row]) -> Table:
    """Spearman's correlations of one rating with every measure, by scope, and within author group with the length held.

    Args:
        rows (`Sequence[Mapping]`): The rows of one rating, of `quality.json`.
    """
    main = _main_scope(rows)
    scopes = list(dict.fromkeys((row["scope"], row["author"]) for row in rows))
    cells = {(row["scope"], row["author"], row["measure"]): row for row in rows}
    header = ["measure", *(f"{_scope_name(*scope)} ({_n(rows, scope)})" for scope in scopes)]
    return text_table(
        "Spearman's correlation with the rating [95%] (texts)",
        [*header, "length held", "p", "p (Holm)"],
        [
            [
                measure,
                *(
                    _correlation(cells.get((*scope, measure)), "spearman", interval=scope[0] != AUTHOR)
                    for scope in scopes
                ),
                _correlation(cells[(main, None, measure)], "spearman_length", interval=False),
                p_value(number(cells[(main, None, measure)]["spearman"]["p_value"])),
                p_value(number(cells[(main, None, measure)]["spearman"]["p_holm"])),
            ]
            for measure in _measures(rows)
        ],
        words=1,
    )


def curve_table(rows: Sequence[Row]) -> Table:
    """The quadratic term of one rating over every measure that is no distance, its peak, and the lines on either side.

    Args:
        rows (`Sequence[Mapping]`): The rows of one rating, of `quality.json`.
    """
    main = _main_scope(rows)
    shown = [row for row in rows if row["scope"] == main and row["quadratic"] is not None]
    where = " within author group" if main == WITHIN else ""
    return text_table(
        f"Is there an inverted U{where}? Standard deviations of the rating by those of the measure [95%]",
        ["measure", "quadratic", "p (Holm)", "peak", "slope below", "slope above", "inverted U"],
        [
            [
                row["measure"],
                with_interval(curve["value"], curve["ci95"], "+.2f"),
                p_value(number(curve["p_holm"])),
                with_interval(curve["peak"], curve["peak_ci95"], ".2f"),
                *(with_interval(curve[side]["value"], curve[side]["ci95"], "+.2f") for side in ("below", "above")),
                "yes" if curve["found"] else "no",
            ]
            for row in shown
            for curve in [row["quadratic"]]
        ],
        words=1,
    )


def plot_quality(rows: Sequence[Row], path: str | Path) -> None:
    """Plot Spearman's correlation of every measure with its interval, a panel per rating, a mark per scope.

    Args:
        rows (`Sequence[Mapping]`): The rows of `quality.json`.
        path (`str` or `Path`): The PNG file to write.
    """
    ratings, measures = list(dict.fromkeys(row["rating"] for row in rows)), _measures(rows)
    scopes = list(dict.fromkeys((row["scope"], row["author"]) for row in rows))
    authors = [author for scope, author in scopes if scope == AUTHOR]  # of the colours that their curves have
    looks: dict[tuple[str, str | None], dict[str, Any]] = {
        scope: {"color": INK if scope[0] == WITHIN else SOFT, "marker": "D" if scope[0] == WITHIN else "v"}
        if scope[0] != AUTHOR
        else _look(authors.index(scope[1]))
        for scope in scopes
    }
    slot = 0.085 * (len(scopes) + 1)
    with framed(
        path,
        panels=len(ratings),
        panel_size=(4.9 if len(ratings) > 1 else 7.4, 0.9 + slot * len(measures)),
        title="How measures of uncertainty go with ratings",
        subtitle="Spearman's correlation of a measure of a text with its rating; 95% bootstrap intervals over texts.",
        note="A filled mark: the interval leaves 0 out (before Holm's correction). A distance is that of the text from "
        "the mean of human text in the profile of the scorer, up or down.",
        legend=[key(one_line(_scope_name(*scope)), look["color"], look["marker"]) for scope, look in looks.items()],
    ) as frame:
        for index, (axes, rating) in enumerate(zip(frame.axes, ratings, strict=True)):
            axes.set_title(wrapped(rating, 3.4, 10), loc="left")
            marks = []
            for row in (row for row in rows if row["rating"] == rating):
                scope, estimate = (row["scope"], row["author"]), row["spearman"]
                y = measures.index(row["measure"]) + (scopes.index(scope) - (len(scopes) - 1) / 2) * 0.8 / len(scopes)
                if math.isfinite(number(estimate["r"])):
                    look = looks[scope]
                    ci95 = ends(estimate["ci95"])
                    marks.append(Mark(y, estimate["r"], ci95, bool(sign(ci95)), look["color"], look["marker"]))
            names = measures if frame.first_in_row(index) else [""] * len(measures)
            draw_forest(axes, marks, names, scale=0.72)
            if frame.last_in_column(index):
                axes.set_xlabel("Spearman's correlation")


def plot_curves(texts: Sequence[Row], path: str | Path, *, human: float | None = None, measure: str = "nll") -> None:
    """Plot mean ratings over a measure, a panel per rating, a line per author group.

    Args:
        texts (`Sequence[Mapping]`): The texts of `quality.json`, with `author`, `ratings` and `measures`.
        path (`str` or `Path`): The PNG file to write.
        human (`float`, *optional*): The mean of human text in the profile, shown as a line.
        measure (`str`, *optional*, defaults to `"nll"`): The measure.
    """
    authors = list(dict.fromkeys(text["author"] for text in texts))
    ratings = list(texts[0]["ratings"])
    legend: list[Artist] = [
        Line2D([], [], label=one_line(author or "all texts"), **_look(i)) for i, author in enumerate(authors)
    ]
    if human is not None:
        legend.append(Line2D([], [], color=SOFT, linestyle=(0, (5, 4)), label="human text in the profile"))
    with framed(
        path,
        panels=len(ratings),
        panel_size=(4.6 if len(ratings) > 1 else 7.4, 3.4),
        title=f"Ratings over {measure} of the text",
        subtitle="Every large point: the mean of a bin of texts, the bins of equal count; bars: 95% of the mean.",
        note="Small points: the texts.",
        legend=legend,
    ) as frame:
        for index, (axes, rating) in enumerate(zip(frame.axes, ratings, strict=True)):
            axes.set_title(wrapped(rating, 3.4, 10), loc="left")
            axes.grid(color=FAINT, linewidth=0.8)
            if human is not None:
                axes.axvline(human, color=SOFT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1.5)
            for i, author in enumerate(authors):
                pairs = [
                    (number(text["measures"][measure]), number(text["ratings"][rating]))
                    for text in texts
                    if text["author"] == author
                ]
                points = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
                if len(points):
                    _draw_curve(axes, points, **_look(i))
            if frame.first_in_row(index):
                axes.set_ylabel("rating")
            if frame.last_in_column(index):
                axes.set_xlabel(f"{measure}, nats per token" if measure == "nll" else measure)


def _draw_curve(axes: Axes, points: np.ndarray, color: str, marker: str) -> None:
    axes.plot(points[:, 0], points[:, 1], "o", color=color, markersize=2, alpha=0.25, markeredgewidth=0, zorder=2)
    ordered = points[np.argsort(points[:, 0], kind="stable")]
    parts = np.array_split(ordered, max(1, min(_POINTS, len(ordered) // 10)))
    means = np.array([part.mean(axis=0) for part in parts])
    # A normal interval will do: a bin has ten texts or more, and the bars are a guide to the eye.
    errors = [1.96 * part[:, 1].std(ddof=1) / math.sqrt(len(part)) if len(part) > 1 else 0.0 for part in parts]
    axes.errorbar(
        means[:, 0],
        means[:, 1],
        errors,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.5,
        elinewidth=1,
        zorder=3,
    )


def _look(author: int) -> dict[str, Any]:
    return {"color": PALETTE[author % len(PALETTE)], "marker": MARKERS[author % len(MARKERS)]}


def _main_scope(rows: Sequence[Row]) -> str:
    """Within author group where there are several, else overall."""
    return WITHIN if any(row["scope"] == WITHIN for row in rows) else OVERALL


def _measures(rows: Sequence[Row]) -> list[str]:
    main = _main_scope(rows)
    return list(dict.fromkeys(row["measure"] for row in rows if row["scope"] == main))


def _scope_name(scope: str, author: str | None) -> str:
    return f"{author} alone" if scope == AUTHOR else "within author" if scope == WITHIN else scope


def _n(rows: Sequence[Row], scope: tuple[str, str | None]) -> int:
    return max(row["n"] for row in rows if (row["scope"], row["author"]) == scope)


def _correlation(row: Row | None, test: str, *, interval: bool) -> str:
    if row is None or row[test] is None:
        return MISSING
    estimate = row[test]
    return with_interval(estimate["r"], estimate["ci95"], "+.2f") if interval else figure(estimate["r"], "+.2f")
