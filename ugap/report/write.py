"""The report of a study: what was found on the terminal, and `gap.md` and the plots in the study's folder."""

from pathlib import Path

import numpy as np
from rich.console import Console

from ugap.files import replacing
from ugap.report.labels import named, with_prompting
from ugap.report.plots import plot_calibration, plot_distributions, plot_gap
from ugap.report.tables import console_table, markdown
from ugap.report.words import findings, like_sentences
from ugap.study import StudyResult
from ugap.study.pairs import Cell
from ugap.terminal import Terminal, one_line

PLOTS = ("gap.png", "distributions.png", "calibration.png")


def write_report(result: StudyResult, folder: str | Path, *, command: str, console: Console | None = None) -> None:
    """Write `gap.md`, `gap.png`, `distributions.png` and `calibration.png`, and say what was found.

    Args:
        result (`StudyResult`): What [`run_study`][ugap.study.run_study] gave.
        folder (`str` or `Path`): Where the files go.
        command (`str`): The command behind the numbers, for the record.
        console (`Console`, *optional*): Where the table and the findings are printed; standard output by default.
    """
    folder = Path(folder)
    console = console or Terminal()
    # With one prompting in the study its name would only lengthen every row.
    both = len({row["prompting"] for row in result.record["gaps"]}) > 1
    gaps = [named(row, both) for row in result.record["gaps"]]
    contrasts = [named(row, both) for row in result.record["contrasts"]]
    settings = result.record["settings"]
    sentences = [*findings(gaps, contrasts), *like_sentences(settings)]
    with replacing(folder / "gap.md") as temporary:
        temporary.write_text(markdown(gaps, contrasts, settings, command, sentences=sentences), encoding="utf-8")
    plot_gap(gaps, folder / PLOTS[0])
    surprisals: dict[str, dict[str, np.ndarray]] = {}
    points: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for cell in (cell for cell in result.cells if cell.human):
        panel = _panel(cell, both)
        for name, texts in (("human", cell.human), (cell.decoding, cell.generated)):
            surprisal = np.concatenate([scores.surprisal for scores in texts])
            entropy = np.concatenate([scores.entropy for scores in texts])
            # All decodings of a panel share one human side: the first cell's is kept.
            surprisals.setdefault(panel, {}).setdefault(name, surprisal)
            points.setdefault(panel, {}).setdefault(name, (entropy, surprisal))
    plot_distributions(surprisals, folder / PLOTS[1])
    plot_calibration(points, folder / PLOTS[2])
    console.print(console_table(gaps))
    for sentence in sentences:
        console.print(f"- {sentence}", markup=False)
    console.print(f"\nThe whole table, plots and per-token scores are in {one_line(str(folder))}", markup=False)


def _panel(cell: Cell, both: bool) -> str:
    reader = "" if cell.scorer == cell.model else f", read by {cell.scorer}"
    return f"{cell.domain}: {with_prompting(cell.model, cell.prompting, both)}{reader}"
