"""A model before and after fine-tuning, for people: tables for a terminal, and the plot of the gaps.

It shows the record of `ugap.study.compare.run.measure_before_after`. In the plot a line is a decoding and a
mark is a model, as the plot of a study has decodings and domains: points with intervals around the human level.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from ugap.report.figure import LABEL, MARKERS, PALETTE, framed, wrapped
from ugap.report.forest import HUMAN_LEVEL, Mark, draw_forest, key, limits
from ugap.report.plots import span
from ugap.report.rows import ends, number, told
from ugap.report.tables import MISSING, p_value
from ugap.report.terminal import figure, text_table, with_interval
from ugap.report.words import FILLED, MEASURES
from ugap.study.analysis.variety import VARIETY
from ugap.study.compare.table import BASE, MATCHED
from ugap.study.pairs import SELF
from ugap.terminal import one_line

BASE_COLOUR = "#7f7f7f"  # grey: the tuned models have the colours
LEGEND = 32  # letters

Record = Mapping[str, Any]


def before_after_tables(record: Record) -> Iterator[Table]:
    """The tables of a comparison: for each scorer gaps, shares closed, rewards, distances, variety; then the probes.

    Args:
        record (`Mapping`): What `ugap.study.compare.run.measure_before_after` gave.
    """
    decoded = partial(_decoded, record)
    for scorer in record["scorers"]:
        read = f"read by {_reader(scorer)}"
        rows = [row for row in record["rows"] if row["scorer"] == scorer["scorer"]]
        names = [(row["writer"], decoded(row["decoding"])) for row in rows]
        yield text_table(
            f"Gap, human less model, {read}: nats per token, and standard deviations (*: p < 0.05)",
            ["model", "decoding", "surprisal [95%]", "ratio", "entropy", "PMI", "deviation", "pairs"],
            [
                [
                    *name,
                    with_interval(*_gap(row, "nll"), "+.2f") + ("*" if _verdict(row) else ""),
                    figure(row["measures"].get("nll", {}).get("ratio"), ".2f"),
                    *(figure(_gap(row, measure)[0], "+.2f") for measure in ("entropy", "pmi", "deviation")),
                    str(row["n"]),
                ]
                for name, row in zip(names, rows, strict=True)
            ],
            words=2,
        )
        yield from _beside_base(
            f"Share of the base's absolute gap in surprisal that is closed, {read}",
            ["before", "after", "closed [95%]"],
            [
                (row, [*(figure(row[name], "+.2f") for name in ("before", "after")), _of(row, "share", ".0%")])
                for row in record["shares"]
                if row["scorer"] == scorer["scorer"]
            ],
            decoded,
        )
        yield from _beside_base(
            f"Closeness to human texts (people: {figure(scorer['human']['reward'], '.3f')}), {read}",
            ["before", "after", "rise [95%]"],
            [
                (row, [*(figure(row[name], ".3f") for name in ("before", "after")), _of(row, "rise", "+.3f")])
                for row in record["rewards"]
                if row["scorer"] == scorer["scorer"]
            ],
            decoded,
        )
        human = scorer["human"]
        yield text_table(
            f"1-Wasserstein distances of surprisal, deviation and PMI, {read}",
            ["model", "decoding", "people: s", "z", "PMI", "profile: s", "z", "PMI"],
            [
                ["people", "", *[MISSING] * 3, *_to_profile(human)],
                *([*name, *_to_people(row), *_to_profile(row)] for name, row in zip(names, rows, strict=True)),
            ],
            words=2,
        )
        yield text_table(
            f"Variety, by {scorer['model']}'s tokens; spread of whole texts (1: human texts), and within a prefix",
            ["model", "decoding", "distinct-2", "distinct-4", "repetition", "spread", "within"],
            [
                [
                    "people",
                    "",
                    *(figure(human[name], ".3f") for name in VARIETY),
                    figure(human["spread"], ".2f"),
                    MISSING,
                ],
                *(
                    [
                        *name,
                        *(figure(row[one]["model_value"], ".3f") for one in VARIETY),
                        *(figure(row["spread"][one], ".2f") for one in ("total", "within")),
                    ]
                    for name, row in zip(names, rows, strict=True)
                    if row["n"]
                ),
            ],
            words=2,
        )
    for name in ("facts", "questions"):
        if record[name] is not None:
            yield _probe(name, record[name], decoded)


def _decoded(record: Record, decoding: str) -> str:
    """A decoding as it is shown: with the temperature where it was sought."""
    return f"matched, T={record['matched']['temperature']:g}" if decoding == MATCHED else decoding


def _beside_base(
    title: str, header: list[str], rows: list[tuple[Record, list[str]]], decoded: Callable[[str], str]
) -> Iterator[Table]:
    """A table of comparisons with the base under a decoding; none where there are none."""
    if rows:
        cells = [
            [row["writer"], decoded(row["decoding"]), decoded(row["base_decoding"]), *figures] for row, figures in rows
        ]
        yield text_table(title, ["model", "decoding", "base under", *header], cells, words=3)


def _of(row: Record, name: str, form: str) -> str:
    return with_interval(row[name], row["ci95"], form)


def _reader(scorer: Record) -> str:
    return f"the frozen base {scorer['model']}" if scorer["scorer"] == SELF else scorer["scorer"]


def _gap(row: Record, measure: str) -> tuple[Any, Any]:
    """A gap and its interval."""
    estimate = row["measures"].get(measure, {})
    return estimate.get("gap"), estimate.get("ci95")


def _verdict(row: Record) -> int:
    """On which side of 0 the gap in surprisal is told, by the rule of a study; 0 where it is not."""
    return told(ends(_gap(row, "nll")[1]), number(row["measures"].get("nll", {}).get("p_adjusted")))


def _to_people(row: Record) -> list[str]:
    return [figure(row["measures"].get(name, {}).get("wasserstein"), ".3f") for name in ("nll", "deviation", "pmi")]


def _to_profile(row: Record) -> list[str]:
    distances = row["to_profile"] or {}
    return [figure(distances.get(name), ".3f") for name in ("surprisal", "deviation", "pmi")]


def _probe(name: str, probe: Record, decoded: Callable[[str], str]) -> Table:
    """Accuracies, each with its differences from the base."""
    rows = []
    for row in probe["accuracies"]:
        if row["kind"] is not None:
            continue
        answered = (row["writer"], row["test"])
        start = [row["writer"], decoded(row["test"]), with_interval(row["accuracy"], row["ci95"], ".1f", scale=100)]
        compared = [
            comparison
            for comparison in probe["comparisons"]
            if (comparison["a_writer"], comparison["a_test"]) == answered
        ]
        for comparison in compared:
            beside = "" if comparison["b_test"] == row["test"] else f", against {comparison['b_test']}"
            difference = with_interval(comparison["difference"], comparison["ci95"], "+.1f", scale=100)
            won = f"{comparison['a_only']}, {comparison['b_only']}"
            rows.append(
                [start[0], start[1] + beside, start[2], difference, won, p_value(number(comparison["p_value"]))]
            )
        if not compared:
            rows.append([*start, "", "", ""])
    return text_table(
        f"{name.capitalize()} ({probe['n']}): % right, and points more than the base (p: McNemar's exact test)",
        ["model", "test", "right [95%]", "more than base [95%]", "won, lost", "p"],
        rows,
        words=2,
    )


def plot_before_after(record: Record, path: str | Path) -> None:
    """Plot the gap in surprisal by decoding and model with 95% intervals, a panel per scorer.

    Args:
        record (`Mapping`): What `ugap.study.compare.run.measure_before_after` gave.
        path (`str` or `Path`): The PNG file to write.
    """
    rows = [row for row in record["rows"] if math.isfinite(number(_gap(row, "nll")[0]))]
    writers = [model["name"] for model in record["models"]]
    decodings = list(dict.fromkeys(row["decoding"] for row in record["rows"]))
    colours = {name: BASE_COLOUR if name == BASE else PALETTE[(i - 1) % len(PALETTE)] for i, name in enumerate(writers)}
    looks = {name: (colours[name], MARKERS[i % len(MARKERS)]) for i, name in enumerate(writers)}
    # Inches: two panels side by side, or one over the whole page.
    width = 5.0 if len(record["scorers"]) > 1 else 7.4
    # Inches of a decoding's line: each model needs 0.16 of them.
    slot = max(0.4, 0.16 * (len(writers) + 1))
    gaps = [_gap(row, "nll") for row in rows]
    words = MEASURES["nll"]
    with framed(
        path,
        panels=len(record["scorers"]),
        panel_size=(width, 1.25 + slot * len(decodings)),
        title="How far from human uncertainty, before and after",
        subtitle=f"Gap: human text less model text for the same prefixes. {words.heading}; 95% intervals.",
        note=f"{FILLED} {_basis(rows)}",
        legend=[key(legend_name(name), *look) for name, look in looks.items()],
    ) as frame:
        for index, (axes, scorer) in enumerate(zip(frame.axes, record["scorers"], strict=True)):
            axes.set_title(wrapped(f"read by {_reader(scorer)}", width - 1.3, 10), loc="left", pad=16)
            marks = _marks([row for row in rows if row["scorer"] == scorer["scorer"]], decodings, looks)
            lines = [wrapped(_decoded(record, name), 1.5, LABEL) for name in decodings]
            draw_forest(axes, marks, lines, zero=HUMAN_LEVEL)
            axes.set_xlim(limits(value for gap, interval in gaps for value in (gap, *ends(interval))))
            if frame.last_in_column(index):
                axes.set_xlabel(f"gap, {words.unit}")


def legend_name(name: str) -> str:
    """A name that a legend of three columns has room for: the end of a long path names it better than its beginning.

    Example:
        >>> legend_name("ours"), legend_name("/data/checkpoints/experiments/2026-11/sft-0.5")
        ('ours', '…nts/experiments/2026-11/sft-0.5')
    """
    name = one_line(name)
    return name if len(name) <= LEGEND else f"…{name[1 - LEGEND :]}"


def _marks(rows: Sequence[Record], decodings: Sequence[str], looks: Mapping[str, tuple[str, str]]) -> list[Mark]:
    """The gaps that one scorer gives; those of several models share the line of their decoding, one below the other."""
    marks, step = [], 0.72 / len(looks)
    for line, decoding in enumerate(decodings):
        here = [row for row in rows if row["decoding"] == decoding]
        for i, row in enumerate(here):
            gap, interval = _gap(row, "nll")
            y = line + (i - (len(here) - 1) / 2) * step
            marks.append(Mark(y, gap, ends(interval), bool(_verdict(row)), *looks[row["writer"]]))
    return marks


def _basis(rows: Sequence[Record]) -> str:
    if not rows:
        return "No gap could be estimated."
    pairs, sources = (sorted({row[name] for row in rows}) for name in ("n", "n_sources"))
    return f"n = {span(pairs, 'pair', 'pairs')} of {span(sources, 'source text', 'source texts')}."
