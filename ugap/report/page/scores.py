"""The scored texts of a study: `scores.parquet`, or the parts of a study that has not ended.

Columns are taken from Arrow without a detour over Python lists, which would take minutes for ten thousand texts. Every
row is checked as it is read: later code trusts its lengths, its offsets and its numbers.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ugap.errors import InputError, reading
from ugap.files import regular_file
from ugap.study.pairs import ScoredText
from ugap.study.store import SCORED, from_row

_ROWS = 1024  # at a time
_FIGURES = {"surprisal": 0.0, "entropy": 0.0, "varentropy": 0.0, "rank": 1.0, "marginal_surprisal": 0.0}  # the lowest
_HIGHEST = 1e9  # of a figure: far above what float32 logits give, and far below where sums overflow


def read_scores(folder: Path) -> Iterator[ScoredText]:
    """The scored texts in the folder of a study; none where nothing is scored.

    Raises:
        InputError: `scores.parquet` is damaged, or not of a study; the message names the column.
    """
    merged = folder / "scores.parquet"
    if merged.exists():
        yield from _scored(merged)
        return
    # A dot starts the name of a file that is being written.
    for part in sorted((folder / "parts" / "scored").glob("[!.]*.part.parquet")):
        try:
            yield from list(_scored(part))
        except InputError:
            continue  # a part that cannot be read counts as not done, as it does for the study


def _scored(path: Path) -> Iterator[ScoredText]:
    """The rows of a Parquet file."""
    broken = f"{path}: not the scores of a study"
    regular_file(path)
    with reading(broken):
        batches = pq.ParquetFile(path, page_checksum_verification=True).iter_batches(_ROWS)
    first = 1
    for batch in _read(batches, broken):
        for column in SCORED:
            if column.name not in batch.schema.names:
                raise InputError(f"{broken} (no column {column.name!r})")
            given = batch.schema.field(column.name).type
            if given != column.type:
                raise InputError(f"{broken} (column {column.name!r} holds {given}, not {column.type})")
        with reading(broken):
            columns = {name: _column(batch.column(name)) for name in SCORED.names}
        for i in range(batch.num_rows):
            row: Mapping[str, Any] = {name: values[i] for name, values in columns.items()}
            if trouble := _trouble(row):
                raise InputError(f"{broken} (row {first + i}: {trouble})")
            yield from_row(row)
        first += batch.num_rows


def _read(batches: Iterator[pa.RecordBatch], broken: str) -> Iterator[pa.RecordBatch]:
    while True:
        with reading(broken):
            batch = next(batches, None)
            if batch is None:
                return
            # A damaged file may hold offsets that point outside of its buffers.
            batch.validate(full=True)
        yield batch


def _column(array: pa.Array) -> list[Any]:
    """The values of a column; lists of numbers as NumPy arrays."""
    if not pa.types.is_list(array.type):
        return array.to_pylist()
    flat = array.flatten().to_numpy(zero_copy_only=False)
    lengths = np.asarray(array.value_lengths().fill_null(0))
    # Split by lengths: a null list has length 0 and no values.
    pieces = np.split(flat, np.cumsum(lengths)[:-1])
    return [piece if valid else None for piece, valid in zip(pieces, array.is_valid().to_pylist(), strict=True)]


def _trouble(row: Mapping[str, Any]) -> str | None:
    """The fault of a row, if it has one."""
    for name, value in row.items():
        if value is None and name != "marginal_surprisal":
            return f"{name} is missing"
    n, offsets = len(row["token_ids"]), row["offsets"]
    if row["token_ids"].dtype.kind != "i" or offsets.dtype.kind != "i":  # Arrow's integers with a null among them
        return "token_ids or offsets hold a null"
    if len(offsets) != 2 * n:
        return f"{len(offsets)} offsets for {n} tokens"
    # Tokens follow each other; those that share a character may share both ends.
    begins, ends = offsets[::2], offsets[1::2]
    if n and (offsets.min() < 0 or offsets.max() > len(row["text"]) or (begins > ends).any()):
        return "offsets beyond the text"
    for name, least in _FIGURES.items():
        values = row[name]
        if values is None:
            continue
        if len(values) != n:
            return f"{len(values)} values of {name} for {n} tokens"
        if not _all_known(values, least):
            return f"{name} holds a value that no model gives"
    return None


def _all_known(values: np.ndarray, least: float) -> bool:
    """Whether all values are NaN or in their range."""
    return bool((np.isnan(values) | ((values >= least) & (values <= _HIGHEST))).all())
