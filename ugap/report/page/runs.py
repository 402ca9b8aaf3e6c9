"""A study's folder as the page reads it: the record, the scored texts and the pairs.

A study that is still running, or was killed, has parts but no `gap.json` yet: its gaps are estimated from the parts
that are there, and the run says that it is unfinished. Columns are taken from Arrow without a detour over Python lists,
which would take minutes for ten thousand texts.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ugap.errors import InputError
from ugap.study.store import SCORED, from_row
from ugap.study.study import VERSION
from ugap.study.table import Cell, ScoredText, contrast_table, gap_table, pair

_COMMAND = re.compile(r"^## Command\n\n(`{3,})sh\n(.*?)\n\1$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Run:
    """What a folder holds.

    Args:
        name (`str`): Name of the folder.
        gaps (`list[dict]`): Rows of `gap.json`.
        contrasts (`list[dict]`): Its contrasts.
        settings (`dict`): Settings of the study, with versions and weight hashes where it has ended.
        command (`str`, *optional*): The command behind the numbers, where `gap.md` has it.
        unfinished (`bool`): Whether the study has not ended.
        texts (`list[ScoredText]`): All scored texts.
        cells (`list[Cell]`): The pairs made of them.
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
        InputError: If there is no such folder, it holds no scores, or its record is damaged or of a newer version.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder" if not folder.exists() else f"{folder}: not the folder of a study")
    record = _record(folder / "gap.json")
    texts = list(_texts(folder))
    if not texts:
        raise InputError(f"{folder}: no scores in it; give the folder of a study (ugap measure --output)")
    cells = pair(texts)
    name = folder.resolve().name
    if record is not None:
        return Run(name, record["gaps"], record["contrasts"], record["settings"], _command(folder), False, texts, cells)
    settings = _settings(folder)
    seed = int(settings.get("seed") or 0)
    gaps = gap_table(cells, seed=seed)
    contrasts = contrast_table(cells, settings.get("tags") or {}, seed=seed)
    return Run(name, gaps, contrasts, settings, None, True, texts, cells)


def _record(path: Path) -> dict[str, Any] | None:
    """The content of `gap.json`; none where the study has not ended."""
    if not path.exists():
        return None
    record = _json(path)
    version = record.get("version")
    if not isinstance(version, int) or not all(name in record for name in ("gaps", "contrasts", "settings")):
        raise InputError(f"{path}: not the record of a study")
    if version > VERSION:
        raise InputError(
            f"{path}: made by a newer ugap (format {version}, this one reads up to {VERSION}); install a newer ugap"
        )
    return record


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "parts" / "scored" / "settings.json"
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: invalid JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not the record of a study")
    return content


def _command(folder: Path) -> str | None:
    """The last block of `gap.md`."""
    path = folder / "gap.md"
    found = _COMMAND.findall(path.read_text(encoding="utf-8")) if path.exists() else []
    return found[-1][1] if found else None


def _texts(folder: Path) -> Iterator[ScoredText]:
    merged = folder / "scores.parquet"
    if merged.exists():
        try:
            yield from _scored(pq.ParquetFile(merged).iter_batches(batch_size=1024))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise InputError(f"{merged}: not the scores of a study ({' '.join(str(error).split())})") from error
        return
    for part in sorted((folder / "parts" / "scored").glob("[!.]*.part.parquet")):
        try:
            yield from _scored(pq.ParquetFile(part).iter_batches())
        except (pa.ArrowException, OSError):
            continue  # a part that cannot be read counts as not done, as it does for the study


def _scored(batches: Iterable[pa.RecordBatch]) -> Iterator[ScoredText]:
    for batch in batches:
        columns = {name: _column(batch.column(name)) for name in SCORED.names}
        for i in range(batch.num_rows):
            row: Mapping[str, Any] = {name: values[i] for name, values in columns.items()}
            yield from_row(row)


def _column(array: pa.Array) -> list[Any]:
    """The values of a column; lists of numbers as NumPy arrays."""
    if not pa.types.is_list(array.type):
        return array.to_pylist()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    lengths = np.asarray(array.value_lengths().fill_null(0))
    pieces = np.split(flat, np.cumsum(lengths)[:-1])
    return [piece if known else None for piece, known in zip(pieces, array.is_valid().to_pylist(), strict=True)]
