"""Three plots: the gap with its intervals, the surprisal of single tokens, and the calibration curve.

Design choices:

- The gap: points with intervals around a line at 0, not bars, because 0 is a result (the human level) and no base.
- Tokens: the share that is more surprising than x. The area between two such curves is the difference of their means,
  about the gap, so the plot shows where along the axis the gap comes from; a density has no such reading.
- Calibration: means in entropy bins of equal token count, straight from the tokens and not a fitted curve.
- Human text is thick and black everywhere; decodings take ordered colours by their mean surprisal.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray

from ugap.report.figure import FAINT, LABEL, MARKERS, PALETTE, SOFT, framed, ordered_colours, wrapped
from ugap.report.forest import HUMAN_LEVEL, Mark, draw_forest, key, limits
from ugap.report.rows import GapRow, read_gaps
from ugap.report.words import FILLED, MEASURES, Measure, tally
from ugap.terminal import one_line

HUMAN = "human"
TOKENS_PER_BIN = 50
TAIL = 0.02
MOST_BINS = 12

DOMAIN_COLOURS = {"creative": PALETTE[0], "functional": PALETTE[1]}
OTHER_COLOURS = PALETTE[2:]

FloatArray = NDArray[np.float64]
Points = tuple[ArrayLike, ArrayLike]


def plot_gap(gaps: Sequence[Mapping[str, Any]], path: str | Path, measure: str = "nll") -> None:
    """Plot the gap by decoding and domain with 95% intervals, a panel per model and scorer.

    Args:
        gaps (`Sequence[Mapping]`): The gap rows of `gap.json`; rows without a gap are left out.
        path (`str` or `Path`): The PNG file to write.
        measure (`str`, *optional*, defaults to `"nll"`): Which of the rows' measures to plot.
    """
    rows, words = read_gaps(gaps, measure), MEASURES[measure]
    panels: dict[tuple[str, str], list[GapRow]] = {}
    for row in rows:
        panels.setdefault(("" if row.given else row.model, row.scorer), []).append(row)
    # One order in all panels, so that a decoding keeps its place where the panels hold the same ones.
    by_label: dict[str, list[float]] = {}
    for row in rows:
        by_label.setdefault(_label(row), []).append(row.gap)
    labels = sorted(by_label, key=lambda label: np.mean(by_label[label]))
    domains = list(dict.fromkeys(row.domain for row in rows))
    colours, spare = {}, iter(OTHER_COLOURS * len(domains))
    for domain in domains:
        colours[domain] = DOMAIN_COLOURS.get(domain) or next(spare)
    looks = {domain: (colours[domain], MARKERS[i % len(MARKERS)]) for i, domain in enumerate(domains)}

    most_rows = max((len({_label(row) for row in group}) for group in panels.values()), default=1)
    slot = max(0.34, 0.16 * (len(domains) + 0.6))  # inches a decoding
    width = 7.4 if len(panels) == 1 else 5.0
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(width, 1.25 + slot * most_rows),
        title=tally(rows, words) if rows else "No gap could be estimated",
        subtitle=f"Gap: human text less model text for the same prefixes. {words.heading}; 95% intervals.",
        note=_basis(rows),
        legend=[key(f"{domain} text", *looks[domain]) for domain in domains],
    ) as frame:
        if not rows:
            _empty(frame.axes[0])
            return
        for index, (axes, ((model, scorer), group)) in enumerate(zip(frame.axes, panels.items(), strict=True)):
            scored = "itself" if group[0].self_scored else scorer
            name = f"{model or 'given texts'}, scored by {scored}"
            axes.set_title(wrapped(name, width - 1.3, 10), loc="left", pad=16)
            shown = [label for label in labels if any(_label(row) == label for row in group)]
            lines = [wrapped(label, 1.5, LABEL) for label in shown]
            draw_forest(axes, _marks(group, shown, looks), lines, zero=HUMAN_LEVEL, first_at_top=False)
            axes.set_xlim(limits(value for row in rows for value in (row.gap, *row.ci95)))
            if frame.last_in_column(index):
                _label_sides(axes, words, width - 1.4)
            else:
                axes.tick_params(labelbottom=False)


def _marks(group: list[GapRow], shown: list[str], looks: Mapping[str, tuple[str, str]]) -> list[Mark]:
    """The estimates of a panel; those of several domains share a line, one above the other."""
    # Of a line of height 1: the rest separates it from its neighbours.
    step = 0.72 / len(looks)
    return [
        Mark(shown.index(_label(row)) - (i - (len(looks) - 1) / 2) * step, row.gap, row.ci95, bool(row.verdict), *look)
        for i, (domain, look) in enumerate(looks.items())
        for row in group
        if row.domain == domain
    ]


def _label_sides(axes: Axes, words: Measure, inches: float) -> None:
    """Name the x axis, and what it means to lie left and right of 0."""
    axes.set_xlabel(f"gap, {words.unit}")
    space = "\N{NO-BREAK SPACE}"  # an arrow stays on the line of its word
    left, right = f"←{space}{words.model_higher}", f"{words.human_higher}{space}→"
    for x, align, hint in ((0.0, "left", left), (1.0, "right", right)):
        axes.annotate(
            wrapped(hint, inches / 2, 8), (x, 0), (0, -33), xycoords="axes fraction", textcoords="offset points",
            ha=align, va="top", color=SOFT, size=8,
        )  # fmt: skip


def _label(row: GapRow) -> str:
    """The label of a line of the gap plot: the decoding, or the name of a given candidate."""
    return row.model if row.given else row.decoding


def _basis(rows: list[GapRow]) -> str:
    """The numbers of prefixes and sources behind a gap plot."""
    parts = [FILLED]
    for domain in dict.fromkeys(row.domain for row in rows):
        prefixes, sources = (
            sorted({count(row) for row in rows if row.domain == domain})
            for count in (lambda row: row.n, lambda row: row.n_sources)
        )
        n = f"n = {span(prefixes, 'prefix', 'prefixes')} of {span(sources, 'source text', 'source texts')}"
        parts.append(f"{domain[:1].upper()}{domain[1:]}: {n}.")
    return " ".join(parts) if rows else ""


def span(values: list[int], one: str, many: str) -> str:
    """Sorted counts as a range with their noun.

    Example:
        >>> span([1], "pair", "pairs"), span([3, 8], "pair", "pairs")
        ('1 pair', '3 to 8 pairs')
    """
    if len(values) == 1:
        return f"{values[0]} {one if values[0] == 1 else many}"
    return f"{values[0]} to {values[-1]} {many}"


def plot_distributions(tokens_by_panel: Mapping[str, Mapping[str, ArrayLike]], path: str | Path) -> None:
    """Plot the share of tokens that are more surprising than x, human text against decodings.

    Args:
        tokens_by_panel (`Mapping[str, Mapping[str, ArrayLike]]`): By panel title and series (`"human"` or a decoding),
            the pooled surprisals of its tokens in nats; NaN is left out.
        path (`str` or `Path`): The PNG file to write.
    """
    panels = {
        title: {name: values for name, array in series.items() if (values := finite(array)[0]).size}
        for title, series in tokens_by_panel.items()
    }
    colours = _colours(panels.values())
    # A single token of 20 nats would squeeze all curves to the left.
    tails = (np.quantile(values, 1 - TAIL) for series in panels.values() for values in series.values())
    limit = float(max(tails, default=0.0)) or 1.0
    grid = np.linspace(0, limit, 500)
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(4.6, 3.7),
        title="How many tokens are more surprising than x",
        subtitle="The area between two curves is the difference of their means in nats per token.",
        note=f"All tokens of all texts pooled: {_token_counts(panels.values())}. Numbers in the legends: mean "
        "surprisal in nats per token. The axis ends where every series has at most 2% of its tokens left.",
    ) as frame:
        if not panels:
            _empty(frame.axes[0])
        for index, (axes, (title, series)) in enumerate(zip(frame.axes, panels.items(), strict=False)):
            axes.set_title(wrapped(title, 3.6, 10), loc="left")
            if not series:
                _empty(axes)
                continue
            for name in sorted(series, key=lambda name: -series[name].mean()):
                values = np.sort(series[name])
                share = 1 - np.searchsorted(values, grid, side="right") / len(values)
                label = f"{values.mean():.2f}  {one_line(name)}"
                axes.plot(grid, 100 * share, label=label, **_line(name, colours))
            axes.grid(color=FAINT, linewidth=0.8)
            axes.set(xlim=(0, limit), ylim=(0, 100))
            axes.legend(loc="upper right", fontsize=7.5, labelspacing=0.3, handlelength=1.8)
            if frame.first_in_row(index):
                axes.set_ylabel("tokens more surprising than x, %")
            if frame.last_in_column(index):
                axes.set_xlabel("x: surprisal, nats")


def plot_calibration(curves: Mapping[str, Mapping[str, Points]], path: str | Path) -> None:
    """Plot mean surprisal against the scorer's entropy, human text against decodings.

    Args:
        curves (`Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]`): By panel title and series (`"human"` or a
            decoding), the entropies and the surprisals of its pooled tokens in nats, of equal length; a token with NaN
            in either is left out.
        path (`str` or `Path`): The PNG file to write.
    """
    panels = {
        title: {name: pair for name, (h, s) in series.items() if (pair := finite(h, s))[0].size}
        for title, series in curves.items()
    }
    surprisals = [{name: pair[1] for name, pair in series.items()} for series in panels.values()]
    colours = _colours(surprisals)
    # Binned before the axes are drawn: the limit is that of the means, not of the tokens.
    binned = {title: {name: bin_means(*pair) for name, pair in series.items()} for title, series in panels.items()}
    means = (float(np.max(pair)) for series in binned.values() for pair in series.values())
    limit = 1.04 * max(means, default=0.0) or 1.0
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(4.5, 4.4),
        title="How surprising texts are where the scorer is uncertain",
        subtitle="On the dashed line, g(h) = h, a text is as surprising as the scorer expects; above it, more so.",
        note=f"Every point: the mean of a bin of entropy, the bins of equal token count; {_token_counts(surprisals)}.",
    ) as frame:
        if not panels:
            _empty(frame.axes[0])
        for index, (axes, (title, curve)) in enumerate(zip(frame.axes, binned.items(), strict=False)):
            axes.set_title(wrapped(title, 3.6, 10), loc="left")
            if not curve:
                _empty(axes)
                continue
            axes.grid(color=FAINT, linewidth=0.8)
            axes.plot([0, limit], [0, limit], color=SOFT, linewidth=1.1, linestyle=(0, (5, 4)), zorder=1.5)
            for name in sorted(curve, key=lambda name: -panels[title][name][1].mean()):
                dots: dict[str, Any] = {"marker": "o", "markersize": 4.5 if name == HUMAN else 3}
                axes.plot(*curve[name], label=f" {one_line(name)}", **_line(name, colours), **dots)
            axes.set(xlim=(0, limit), ylim=(0, limit))
            axes.legend(loc="upper left", fontsize=7.5, labelspacing=0.3, handlelength=1.8)
            if frame.first_in_row(index):
                axes.set_ylabel("mean surprisal, nats per token")
            if frame.last_in_column(index):
                axes.set_xlabel("h: entropy of the scorer, nats")


def bin_means(entropy: FloatArray, surprisal: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean entropy and mean surprisal in bins of entropy with about equal token counts.

    Args:
        entropy (`np.ndarray` of shape `(N,)`): Entropy of every token in nats, finite, at least one.
        surprisal (`np.ndarray` of shape `(N,)`): Surprisal of every token in nats, finite.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: Both means of shape `(B,)` in nats, by ascending entropy; tokens of one entropy
        share a bin, so there may be fewer bins than the at most 12 of at least 50 tokens.
    """
    # Fewer than 50 tokens in a bin give a mean that is mostly noise.
    n_bins = int(np.clip(len(entropy) // TOKENS_PER_BIN, 1, MOST_BINS))
    # Edges that are themselves tokens' entropies leave no bin empty, however many tokens share one entropy.
    edges = np.unique(np.quantile(entropy, np.arange(n_bins) / n_bins, method="inverted_cdf"))[1:]
    bins = np.searchsorted(edges, entropy, side="right")
    counts = np.bincount(bins)
    return np.bincount(bins, weights=entropy) / counts, np.bincount(bins, weights=surprisal) / counts


def finite(*arrays: ArrayLike) -> tuple[FloatArray, ...]:
    """The arrays in float64 without the positions where one of them is not finite."""
    stacked = [np.asarray(array, dtype=np.float64) for array in arrays]
    keep = np.logical_and.reduce([np.isfinite(array) for array in stacked])
    return tuple(array[keep] for array in stacked)


def _colours(panels: Iterable[Mapping[str, FloatArray]]) -> dict[str, Any]:
    """A colour for every series but human text, ordered by mean surprisal over the panels."""
    means: dict[str, list[float]] = {}
    for series in panels:
        for name, values in series.items():
            means.setdefault(name, []).append(float(values.mean()))
    means.pop(HUMAN, None)
    names = sorted(means, key=lambda name: -np.mean(means[name]))
    return dict(zip(names, ordered_colours(len(names)), strict=True))


def _line(name: str, colours: Mapping[str, Any]) -> dict[str, Any]:
    if name == HUMAN:
        return {
            "color": "black",
            "linewidth": 3.2,
            "zorder": 2.5,
        }  # below the others: what coincides with it still shows
    return {"color": colours[name], "linewidth": 1.5, "zorder": 3}


def _token_counts(panels: Iterable[Mapping[str, FloatArray]]) -> str:
    counts = sorted({len(values) for series in panels for values in series.values()})
    if not counts:
        return "no tokens"
    if len(counts) == 1:
        return f"{counts[0]:,} tokens a series"
    return f"{counts[0]:,} to {counts[-1]:,} tokens a series"


def _empty(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "nothing to show", transform=axes.transAxes, ha="center", va="center", color=SOFT)
