"""Uncertainty against factuality, for people: the points as a table, and the plot with the Pareto frontier.

It shows the record of `ugap eval tradeoff`. In the plot the upper left is best: no gap, all facts right.
Our runs take ordered colours by weight and a marker by limit; the base is grey, baselines and added models have colours
of their own.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from rich.table import Table

from ugap.report.before_after import BASE_COLOUR, legend_name
from ugap.report.figure import FAINT, MARKERS, SOFT, framed, ordered_colours, wrapped
from ugap.report.rows import ends
from ugap.report.terminal import text_table, with_interval
from ugap.study.compare.table import BASE, MATCHED
from ugap.study.pairs import SELF

OTHER_COLOURS = ("#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#0072b2")
OTHER_MARKERS = ("X", "P", "*", "<", ">", "h")

Record = Mapping[str, Any]
Look = Mapping[str, Any]


def tradeoff_tables(record: Record) -> Iterator[Table]:
    """A table for each scorer and decoding: the points, those on the frontier marked.

    Args:
        record (`Mapping`): What `ugap eval tradeoff` writes.
    """
    for (scorer, decoding), points in _panels(record).items():
        yield text_table(
            f"Size of the gap in surprisal (nats per token) against facts right, {_title(scorer, decoding)}",
            ["model", "size of the gap [95%]", "% right [95%]", "frontier"],
            [
                [
                    _name(record, point),
                    with_interval(point["size"], point["size_ci95"], ".2f"),
                    with_interval(point["accuracy"], point["accuracy_ci95"], ".1f", scale=100),
                    "yes" if point["pareto"] else "",
                ]
                for point in sorted(points, key=lambda point: point["size"])
            ],
            words=1,
        )


def plot_tradeoff(record: Record, path: str | Path) -> None:
    """Plot the size of the gap in surprisal against the accuracy on the facts, a panel per scorer and decoding.

    Args:
        record (`Mapping`): What `ugap eval tradeoff` writes.
        path (`str` or `Path`): The PNG file to write.
    """
    panels = _panels(record)
    looks = _looks(record)
    with framed(
        path,
        panels=max(1, len(panels)),
        panel_size=(7.4 if len(panels) == 1 else 5.0, 4.4),
        title="Human uncertainty against what is still known",
        subtitle="Best is the upper left. Size of the gap in surprisal between people and the model, and share of the "
        "facts that are right; 95% intervals.",
        note="On the line, the Pareto frontier: no other model is as near to people and as accurate and better in one.",
        legend=[
            Line2D([], [], linestyle="none", markersize=7, label=legend_name(name), **look)
            for name, look in looks.items()
        ],
    ) as frame:
        for index, (axes, ((scorer, decoding), points)) in enumerate(zip(frame.axes, panels.items(), strict=False)):
            axes.set_title(wrapped(_title(scorer, decoding), 4.0, 10), loc="left")
            _draw(axes, [(point, looks[_name(record, point)]) for point in points])
            axes.set_xlabel("size of the gap, nats per token")
            if frame.first_in_row(index):
                axes.set_ylabel("facts right, %")


def _draw(axes: Axes, points: Sequence[tuple[Record, Look]]) -> None:
    axes.grid(color=FAINT, linewidth=0.8)
    # By the size of the gap, so that the line has no loops.
    frontier = sorted((point["size"], 100 * point["accuracy"]) for point, _ in points if point["pareto"])
    axes.plot(*zip(*frontier, strict=True), color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    for point, look in points:
        x, y = point["size"], 100 * point["accuracy"]
        colour = look["color"]
        for interval, scale, along in ((point["size_ci95"], 1, "x"), (point["accuracy_ci95"], 100, "y")):
            low, high = (scale * end for end in ends(interval))
            if math.isfinite(low):
                line = ([low, high], [y, y]) if along == "x" else ([x, x], [low, high])
                axes.plot(*line, color=colour, linewidth=1.0, alpha=0.45, zorder=2.5)
        axes.plot([x], [y], linestyle="none", markersize=9 if point["pareto"] else 6.5, zorder=4, **look)
    axes.set_xlim(left=-0.02 * axes.get_xlim()[1])  # a mark on the axis is seen whole


def _looks(record: Record) -> dict[str, Look]:
    """Colour and marker of every model by the name that it is shown by, in the order of the legend."""
    shown = list(dict.fromkeys(_name(record, point) for point in record["points"]))
    ours = {run["name"]: run["settings"] for run in record["runs"] if run["settings"].get("weight") is not None}
    weights = sorted({settings["weight"] for settings in ours.values()})
    limits = list(dict.fromkeys(settings["constraint_limit"] for settings in ours.values()))
    colours = dict(zip(weights, ordered_colours(len(weights)), strict=True)) if weights else {}
    out: dict[str, Look] = {}
    others = 0
    for name in shown:
        if name in ours:
            settings = ours[name]
            marker = MARKERS[limits.index(settings["constraint_limit"]) % len(MARKERS)]
            out[name] = {"color": colours[settings["weight"]], "marker": marker}
        elif name == BASE:
            out[name] = {"color": BASE_COLOUR, "marker": "o"}
        # The base at the matched temperature: hollow, as it is the same model.
        elif name.startswith(f"{BASE}, "):
            out[name] = {"color": BASE_COLOUR, "marker": "o", "markerfacecolor": "white"}
        else:
            colour = others % len(OTHER_COLOURS)
            out[name] = {"color": OTHER_COLOURS[colour], "marker": OTHER_MARKERS[others % len(OTHER_MARKERS)]}
            others += 1
    return out


def _name(record: Record, point: Record) -> str:
    if point["own_decoding"] != MATCHED:
        return str(point["model"])
    return f"{point['model']}, matched T={record['matched']['temperature']:g}"


def _title(scorer: str, decoding: str) -> str:
    return f"{decoding}, read by {'the frozen base' if scorer == SELF else scorer}"


def _panels(record: Record) -> dict[tuple[str, str], list[Record]]:
    panels: dict[tuple[str, str], list[Record]] = {}
    for point in record["points"]:
        panels.setdefault((point["scorer"], point["decoding"]), []).append(point)
    return panels
