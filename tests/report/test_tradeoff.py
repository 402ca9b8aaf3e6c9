"""The table and the plot of the trade-off."""

from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

import ugap.report.figure
from ugap.report.tradeoff import plot_tradeoff, tradeoff_tables


def point(model, size, accuracy, pareto, own="ancestral", scorer="self"):
    return {
        "scorer": scorer,
        "decoding": "ancestral",
        "model": model,
        "own_decoding": own,
        "size": size,
        "size_ci95": [None, None] if model == "GEM" else [max(0.0, size - 0.1), size + 0.1],
        "accuracy": accuracy,
        "accuracy_ci95": [accuracy - 0.05, accuracy + 0.05],
        "pareto": pareto,
    }


@pytest.fixture
def record():
    points = [
        point("base", 0.8, 0.6, False),
        point("base", 0.2, 0.6, True, "temperature-matched"),
        point("w=0, limit 0.02", 0.4, 0.59, False),
        point("w=1, limit 0.02", 0.1, 0.55, True),
        point("w=1, no limit", 0.1, 0.5, False),
        point("GEM", 0.5, 0.5, False),
        point("grpo [b]", 0.3, 0.6, False),
    ]
    limited = {"objective": "creativity-reality", "constraint_limit": 0.02}
    return {
        "runs": [
            {"name": "w=0, limit 0.02", "settings": {**limited, "weight": 0.0}},
            {"name": "w=1, limit 0.02", "settings": {**limited, "weight": 1.0}},
            {"name": "w=1, no limit", "settings": {**limited, "weight": 1.0, "constraint_limit": None}},
            {"name": "GEM", "settings": {"objective": "gem", "constraint_limit": None}},
        ],
        "matched": {"temperature": 0.9},
        "points": points + [{**one, "scorer": "gemma"} for one in points[:3]],
    }


def test_the_tables(record):
    console = Console(width=80, highlight=False, record=True)
    for table in tradeoff_tables(record):
        console.print(table)
    lines = console.export_text().splitlines()
    assert "read by the frozen base" in " ".join(lines)
    assert "read by gemma" in " ".join(lines)
    models = [line for line in lines if "[" in line and line.startswith(("base", "w=", "GEM", "grpo"))]
    assert models[0].split() == ["w=1,", "limit", "0.02", "0.10", "[0.00,", "0.20]", "55.0", "[50.0,", "60.0]", "yes"]
    assert models[-4].startswith("base ")  # the farthest of the first table is the last
    assert "yes" not in models[-4]
    assert next(line for line in models if line.startswith("base, matched T=0.9")).rstrip().endswith("yes")
    assert any(line.startswith("grpo [b]") for line in models)
    assert "0.50  50.0 [45.0, 55.0]" in next(line for line in models if line.startswith("GEM"))


def test_the_plot(record, tmp_path, monkeypatch):
    made: list[Figure] = []

    class Recorded(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(ugap.report.figure, "Figure", Recorded)
    plot_tradeoff(record, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    (figure,) = made
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "base",
        "base, matched T=0.9",
        "w=0, limit 0.02",
        "w=1, limit 0.02",
        "w=1, no limit",
        "GEM",
        "grpo [b]",
    ]
    handles: list[Any] = figure.legends[0].legend_handles
    looks = [(str(one.get_color()), str(one.get_markerfacecolor()), one.get_marker()) for one in handles]
    assert len(set(looks)) == len(looks)  # all are told apart
    assert looks[2][0] != looks[3][0] == looks[4][0]  # ours: colour by weight, marker by limit
    assert looks[2][2] == looks[3][2] != looks[4][2]
    assert len(figure.axes) == 2
    frontier: Any = figure.axes[0].lines[0]
    assert frontier.get_xydata().ravel() == pytest.approx([0.1, 55.0, 0.2, 60.0])


def test_a_single_point(record, tmp_path):
    plot_tradeoff({**record, "runs": [], "points": [point("base", 0.0, 0.6, True)]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()
