"""The tables: `gap.md` for files and a compact one for the terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from ugap.report.rows import ContrastRow, GapRow, read_gaps
from ugap.report.words import CANNOT, MEASURES, Measure, findings, fixed, interval
from ugap.terminal import Name, visible

TERMINAL_MEASURES = ("nll", "entropy")
MISSING = "–"

DEFINITIONS = (
    "Surprisal of a token is -log p under the scorer in nats; NLL is its mean over a text and perplexity exp(NLL); "
    "entropy is the mean entropy of the scorer's distribution before each token; deviation is the mean of (surprisal - "
    "entropy) / sqrt(varentropy); PMI is surprisal without the prefix less surprisal with it; CPMI is conditional PMI.",
    "Gap is human less model, paired by prefix and cut to the same number of tokens; ratio is human / model; the "
    "interval is a 95% bootstrap over source texts; d_z is the mean over the standard deviation of the differences by "
    "source text; W1 is the 1-Wasserstein distance between the pooled tokens of both sides, for perplexity and bits "
    "per byte between the texts. Perplexities are geometric means over texts; their gap is the logarithm of the ratio.",
    "p is of the bootstrap that makes the interval. Surprisal is the primary measure: p (adjusted) is by step-down "
    "max-T over its rows, with sign flips of source texts. Perplexity is surprisal on another scale and is in that "
    "family. Other measures are secondary: p (adjusted) is Benjamini and Hochberg's over all their rows. A difference "
    "is told where p (adjusted) is below 0.05. With fewer than 6 source texts it cannot be significant.",
)


# What begins emphasis, code, a cell, a link, a tag, an entity or mathematics; an underscore inside a word does not.
_SPECIAL = re.compile(r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=[A-Za-z#])|\](?=[(\[:])")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows letter by letter on one line, also in a cell of a table or printed on a terminal."""
    return _SPECIAL.sub(r"\\\g<0>", visible(" ".join(text.split())))


def markdown(
    gaps: Sequence[Mapping[str, Any]],
    contrasts: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    command: str,
    *,
    title: str = "The uncertainty gap between people and models",
    sentences: Sequence[str] | None = None,
    sections: Sequence[str] = (),
) -> str:
    """Write a study's result as a Markdown document.

    Args:
        gaps (`Sequence[Mapping]`): The gap rows of `gap.json`; null and NaN both mean that there is no such number.
        contrasts (`Sequence[Mapping]`): Its contrast rows.
        settings (`Mapping[str, Any]`): The settings of the study, of plain types; printed as YAML.
        command (`str`): The command line that makes this document.
        title (`str`, *optional*): The heading of the document.
        sentences (`Sequence[str]`, *optional*): The findings; by default those of `ugap.report.findings`.
        sections (`Sequence[str]`, *optional*): Paragraphs between the findings and the tables.

    Returns:
        `str`: Findings in words, a table per measure, contrasts, definitions, settings and the command.
    """
    sentences = findings(gaps, contrasts) if sentences is None else sentences
    parts = [f"# {title}", "## Findings", "\n".join(f"- {escape_markdown(one)}" for one in sentences), *sections]
    for name in _ordered(row["measure"] for row in gaps):
        measure = MEASURES[name]
        rows = [GapRow.read(row) for row in gaps if row["measure"] == name]
        parts += [f"## {measure.heading}", _gap_table(rows, measure)]
    if contrasts:
        parts += ["## Contrasts", "The gap of a less the gap of b, in the unit of the measure.", _contrasts(contrasts)]
    parts += ["## Definitions", "\n".join(f"- {escape_markdown(line)}" for line in DEFINITIONS)]
    parts += [
        "## Settings",
        markdown_block(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), "yaml"),
    ]
    parts += ["## Command", markdown_block(command, "sh")]
    return "\n\n".join(parts) + "\n"


def _ordered(measures: Any) -> list[str]:
    present = set(measures)
    return [name for name in MEASURES if name in present]


def _gap_table(rows: list[GapRow], measure: Measure) -> str:
    places = measure.decimals
    header = [
        "domain", "model", "decoding", "scorer", "prefixes (sources)", "human", "model value", "gap [95% interval]",
        "ratio", "d_z", "p", "p (adjusted)",
    ]  # fmt: skip
    cells = [
        [
            row.domain,
            row.model,
            row.decoding,
            row.scorer,
            f"{row.n} ({row.n_sources})",
            _figure(row.human, places),
            _figure(row.model_value, places),
            _with_interval(row.gap, row.ci95, places),
            _figure(row.ratio, 2),
            _figure(row.effect_size, 2),
            p_value(row.p_value),
            _adjusted(row.gap, row.p_adjusted),
        ]
        for row in rows
    ]
    # A study of many models keeps no tokens, which the distance is between: a column of dashes would say nothing.
    if any(math.isfinite(row.wasserstein) for row in rows):
        header.append("W1")
        for row, line in zip(rows, cells, strict=True):
            line.append(_figure(row.wasserstein, places))
    return markdown_table(header, cells, words=4)


def _contrasts(contrasts: Sequence[Mapping[str, Any]]) -> str:
    header = (
        "measure", "a", "b", "of", "decoding", "scorer", "sources", "gap of a", "gap of b",
        "difference [95% interval]", "p", "p (adjusted)",
    )  # fmt: skip
    cells = []
    for row in map(ContrastRow.read, contrasts):
        places = MEASURES[row.measure].decimals
        cells.append(
            (
                row.measure,
                row.a,
                row.b,
                row.model if row.of_domains else row.domain,
                row.decoding,
                row.scorer,
                ", ".join(str(n) for n in dict.fromkeys(row.n_sources)),
                _figure(row.gap_a, places),
                _figure(row.gap_b, places),
                _with_interval(row.difference, row.ci95, places),
                p_value(row.p_value),
                _adjusted(row.difference, row.p_adjusted),
            )
        )
    return markdown_table(header, cells, words=6)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first columns are words, to the left, and whose other columns are numbers, to the right."""
    rules = [":---"] * words + ["---:"] * (len(header) - words)
    lines = [map(escape_markdown, header), rules, *(map(escape_markdown, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown_block(text: str, language: str) -> str:
    """A fenced block; the fence is longer than any run of backticks in the text."""
    text = visible(text)
    # A command may hold backticks, which would end a shorter fence.
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _figure(value: float, places: int) -> str:
    return fixed(value, places) if math.isfinite(value) else MISSING


def _with_interval(value: float, ci95: tuple[float, float], places: int) -> str:
    if not math.isfinite(value):
        return MISSING
    low, high = ci95
    return f"{fixed(value, places)} {interval(low, high, places)}"


def _adjusted(estimate: float, p: float) -> str:
    """The corrected p of an estimate; words where the number of source texts allows none."""
    return CANNOT if math.isfinite(estimate) and math.isnan(p) else p_value(p)


def p_value(p: float) -> str:
    """A p-value with three decimals."""
    if not math.isfinite(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def stars(p: float) -> str:
    """`***`, `**` and `*` for p below 0.001, 0.01 and 0.05; a dash where no test could be made."""
    if not math.isfinite(p):
        return MISSING
    return "*" * sum(p < level for level in (0.001, 0.01, 0.05))


def console_table(gaps: Sequence[Mapping[str, Any]]) -> Table:
    """The gaps of surprisal and entropy as a table for a terminal of 80 columns.

    Args:
        gaps (`Sequence[Mapping]`): The gap rows of `gap.json`.

    Returns:
        `rich.table.Table`: A section for every measure and scorer; text of the user is shown as it is, without markup.
    """
    outer = Table.grid()
    outer.caption = Text(
        "95% intervals. p after its correction: * < 0.05, ** < 0.01, *** < 0.001; –: too few texts for any"
    )
    outer.caption_justify = "left"
    if not any(read_gaps(gaps, name) for name in TERMINAL_MEASURES):
        outer.add_row("No gap could be estimated.")
    for name in TERMINAL_MEASURES:
        groups: dict[str, list[GapRow]] = {}
        for row in read_gaps(gaps, name):
            groups.setdefault("" if row.self_scored else row.scorer, []).append(row)
        for scorer, rows in groups.items():
            scored = f"scored by {scorer}" if scorer else "each model scored by itself"
            outer.add_row(Text(f"{MEASURES[name].heading}, {scored}", style="bold"))
            outer.add_row(_console_section(rows))
            outer.add_row("")
    return outer


def _console_section(rows: list[GapRow]) -> Table:
    # Domain and model are a line above their rows: a terminal has no room for columns that repeat.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("decoding", overflow="fold")
    for column in ("human", "model", "gap [95% CI]", "ratio", "p"):
        width = 20 if column.startswith("gap") else 3  # so that the sections line up
        table.add_column(column, justify="left" if column == "p" else "right", no_wrap=True, min_width=width)
    previous: GapRow | None = None
    for row in rows:
        if previous is None or (previous.domain, previous.model) != (row.domain, row.model):
            table.add_section()
            table.add_row(Name(f"{row.domain}, {row.model}"))
        # Cyan and magenta are read on light and dark terminals, and by the colour-blind.
        colour = {1: "cyan", -1: "magenta", 0: ""}[row.verdict]
        table.add_row(
            Name(f"  {row.decoding}"),
            _figure(row.human, 2),
            _figure(row.model_value, 2),
            Text(_with_interval(row.gap, row.ci95, 2), style=colour),
            _figure(row.ratio, 2),
            stars(row.p_adjusted),
        )
        previous = row
    return table
