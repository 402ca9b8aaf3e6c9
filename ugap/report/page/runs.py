"""A study's folder as the page reads it: the record, the scored texts and the pairs.

A study that is still running, or was killed, has parts but no `gap.json` yet: its gaps are estimated from the parts
that are there, with few resamples, and the run says that it is unfinished.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ugap.errors import InputError
from ugap.report.page.record import read_command, read_record, read_settings
from ugap.report.page.scores import read_scores
from ugap.study.gap.table import contrast_table, gap_table
from ugap.study.pairs import Cell, ScoredText, pair

_RESAMPLES = 1000  # of a study that has not ended: its page takes seconds, and its intervals move with every text


@dataclass(frozen=True)
class Run:
    """The study in a folder.

    Args:
        name (`str`): Name of the folder.
        gaps (`list[dict]`): Rows of `gap.json`.
        contrasts (`list[dict]`): Its contrasts.
        settings (`dict`): Settings of the study, with versions and weight hashes where it has ended.
        command (`str`, *optional*): The command behind the numbers, where `gap.md` has it.
        unfinished (`bool`): Whether the study has not ended.
        texts (`list[ScoredText]`): All scored texts.
        cells (`list[Cell]`): The pairs made of them, without cells that have none.
    """

    name: str
    gaps: list[dict[str, Any]]
    contrasts: list[dict[str, Any]]
    settings: dict[str, Any]
    command: str | None
    unfinished: bool
    texts: list[ScoredText]
    cells: list[Cell]


def read_run(folder: str | Path) -> Run:
    """Read what a study left in its folder.

    Args:
        folder (`str` or `Path`): The `--output` of `ugap measure` or `ugap demo`.

    Raises:
        InputError: If there is no such folder, it holds no scores, or its record is damaged or of another version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not the folder of a study")
    record = read_record(folder / "gap.json")
    texts = list(read_scores(folder))
    if not texts:
        raise InputError(f"{folder}: no scores in it; give the folder of a study (ugap measure --output)")
    # Cells without a pair are rows of the table too; the curves need texts.
    every = pair(texts)
    cells = [cell for cell in every if cell.human]
    name = folder.resolve().name
    if record is not None:
        command = read_command(folder / "gap.md")
        return Run(name, record["gaps"], record["contrasts"], record["settings"], command, False, texts, cells)
    settings = read_settings(folder / "parts" / "scored" / "settings.json")
    seed = int(settings.get("seed") or 0)
    gaps = gap_table(every, seed=seed, resamples=_RESAMPLES)
    contrasts = contrast_table(every, settings.get("stages") or {}, seed=seed, resamples=_RESAMPLES)
    return Run(name, gaps, contrasts, settings, None, True, texts, cells)
