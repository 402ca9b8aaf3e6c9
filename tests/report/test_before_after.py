"""The tables and the plot of a comparison, from a record with what a record can lack."""

from typing import Any

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from rich.console import Console

import ugap.report.figure
from ugap.report.before_after import BASE_COLOUR, before_after_tables, plot_before_after
from ugap.report.figure import PALETTE


def measure(gap, half=0.1):
    ci95 = [None, None] if half is None else [gap - half, gap + half]
    figures = {"human": 3.0, "model_value": 3.0 - gap, "ratio": 3.0 / (3.0 - gap), "wasserstein": abs(gap) + 0.01}
    told = half is not None and abs(gap) > half
    return {"gap": gap, "ci95": ci95, **figures, "p_adjusted": None if half is None else 0.001 if told else 0.9}


def row(writer, decoding, gap, scorer="self", **more):
    measures = {name: measure(gap * factor) for name, factor in (("nll", 1), ("entropy", 0.5), ("pmi", -0.2))}
    varied = {name: {"human": 0.9, "model_value": 0.8} for name in ("distinct_2", "distinct_4", "repetition")}
    profile = {"surprisal": 0.1, "deviation": 0.2} if scorer == "self" else None
    found = {"writer": writer, "decoding": decoding, "settings": {}, "scorer": scorer, "n": 40, "n_sources": 20}
    return {
        **found,
        "n_dropped": 0,
        "measures": measures,
        "to_profile": profile,
        **varied,
        "spread": {"total": 1.1, "within": 0.8, "between": 0.7},
        **more,
    }


def reading(scorer):
    human = {"distinct_2": 0.95, "distinct_4": 0.99, "repetition": 0.2, "to_profile": {"surprisal": 0.05}}
    human["spread"] = 0.97
    human["reward"] = 0.83 if scorer == "self" else None
    return {"scorer": scorer, "model": "tiny" if scorer == "self" else scorer, "human": human}


def names_of(writer, decoding):
    return {"writer": writer, "decoding": decoding, "base_decoding": "ancestral", "scorer": "self"}


def share(writer, decoding, value, ci95):
    return {**names_of(writer, decoding), "before": 0.8, "after": 0.8 * (1 - value), "share": value, "ci95": ci95}


def accuracy(writer, test, value, kind=None):
    ends = [value - 0.05, value + 0.05]
    return {"writer": writer, "test": test, "kind": kind, "n": 40, "accuracy": value, "ci95": ends}


@pytest.fixture
def record():
    gone = row("ours [b]", "ancestral", 0.0, "cross", n=0, n_sources=0, measures={}, to_profile=None)
    compared = {"difference": -0.05, "ci95": [-0.1, 0.0], "a_only": 1, "b_only": 3, "p_value": 0.625}
    names = {"a_writer": "ours [b]", "a_test": "contrastive", "b_writer": "base", "b_test": "contrastive"}
    matched = {"a_writer": "base", "a_test": "temperature-matched", "b_writer": "base", "b_test": "ancestral"}
    return {
        "models": [{"name": "base"}, {"name": "ours [b]"}],
        "matched": {"temperature": 1.207},
        "scorers": [reading("self"), reading("cross")],
        "rows": [
            row("base", "ancestral", 0.8),
            row("base", "temperature-matched", 0.05),
            row("ours [b]", "ancestral", -0.2),
            row("base", "ancestral", 0.5, "cross"),
            {**row("base", "temperature-matched", 0.1, "cross"), "measures": {"nll": measure(0.1, None)}},
            gone,
        ],
        "shares": [
            share("ours [b]", "ancestral", 0.75, [0.6, 0.85]),
            share("base", "temperature-matched", 0.9, [None, None]),
        ],
        "rewards": [
            {**names_of("ours [b]", "ancestral"), "before": 0.5, "after": 0.7, "rise": 0.2, "ci95": [0.1, 0.3]},
            {**names_of("base", "temperature-matched"), "before": 0.5, "after": 0.6, "rise": 0.1, "ci95": [None, None]},
        ],
        "facts": {
            "n": 40,
            "accuracies": [
                accuracy("base", "contrastive", 0.6),
                accuracy("base", "contrastive", 0.111, "capitals"),
                accuracy("ours [b]", "contrastive", 0.55),
                accuracy("base", "temperature-matched", 0.3),
            ],
            "comparisons": [{**names, **compared}, {**matched, **compared, "p_value": None, "ci95": [None, None]}],
        },
        "questions": None,
    }


def printed(record, width=100):
    console = Console(width=width, highlight=False, record=True)
    for table in before_after_tables(record):
        console.print(table)
    return console.export_text()


def test_the_tables(record):
    lines = printed(record).splitlines()
    ours = [line for line in lines if line.startswith("ours [b]")]  # brackets in a name are no markup
    assert "-0.20 [-0.30, -0.10]*   0.94" in ours[0]
    assert "75% [60%, 85%]" in ours[1]
    assert "+0.200 [+0.100, +0.300]" in ours[2]
    assert "people: 0.830" in printed(record)
    matched = [line for line in lines if "matched, T=1.207" in line]
    assert matched[1].rstrip().endswith("90%")  # no interval where there is none
    # The model that wrote nothing: dashes, not numbers.
    assert [cell for cell in ours[5].split() if cell == "–"] == ["–"] * 5
    people = next(line for line in lines if line.startswith("people"))
    assert "0.050" in people
    fact = next(line for line in ours if "55.0" in line)
    assert "55.0 [50.0, 60.0]" in fact
    assert "-5.0 [-10.0, +0.0]" in fact
    assert "1, 3" in fact
    assert "0.625" in fact
    compared = next(line for line in lines if ", against " in line)
    assert "-5.0" in compared
    assert "11.1" not in printed(record)  # kinds are in the file
    assert "Questions" not in printed(record)


def test_a_terminal_of_80_columns_is_enough(record):
    """No word is cut in pieces but names and decodings."""
    text = printed(record, width=80)
    assert max(map(len, text.splitlines())) <= 80
    for words in ("surprisal [95%]", "closed [95%]", "-0.20 [-0.30, -0.10]", "75% [60%, 85%]", "-5.0 [-10.0, +0.0]"):
        assert words in text


def test_the_plot(record, tmp_path, monkeypatch):
    made: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(ugap.report.figure, "Figure", Recorded)
    plot_before_after(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    (figure,) = made
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "ours [b]"]
    own, cross = figure.axes
    assert own.get_title(loc="left") == "read by the frozen base tiny"
    assert cross.get_title(loc="left") == "read by cross"
    names = [label.get_text().replace("\n", " ") for label in own.get_yticklabels()]
    assert names == ["ancestral", "matched, T=1.207"]
    lines: list[Any] = [line for line in own.lines if line.get_marker() != "None"]
    marks = {
        (to_hex(line.get_color()), round(line.get_xdata()[0], 2)): to_hex(line.get_markerfacecolor()) for line in lines
    }
    # Filled where p is below 0.05 after its correction.
    assert marks == {
        (BASE_COLOUR, 0.8): BASE_COLOUR,
        (BASE_COLOUR, 0.05): "#ffffff",
        (PALETTE[0], -0.2): PALETTE[0],
    }
    assert len([line for line in cross.lines if line.get_marker() != "None"]) == 2
    assert own.get_xlim() == cross.get_xlim()


def test_nothing_to_plot(record, tmp_path):
    plot_before_after({**record, "rows": [row for row in record["rows"] if not row["n"]]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
