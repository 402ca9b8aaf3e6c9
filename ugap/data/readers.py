"""Rows out of files and data sets, numbered as a person counts them.

A reader yields `(row number, record)`, where a record is a mapping by column, or a `BadRow` that says why there is
none: a fault of one row must not end the reading of the rows after it. Row numbers start at 1; for JSON lines they are
line numbers, elsewhere the header is not counted. A fault of the file as a whole raises `InputError`.

- JSON lines are split as bytes, so that one line with broken UTF-8 neither moves nor hides the others.
- CSV has to be decoded before it is split (a quoted field may hold newlines), so bytes that are no UTF-8 travel through
  the parser as lone surrogates, which valid UTF-8 can never produce, and are found in their row.
- Parquet and Hub data sets are read in batches of Arrow; their strings are decoded here, for the same reason.
- A line is bounded, since a few bytes of gzip can stand for one that fills the memory.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ugap.errors import InputError, reading
from ugap.files import regular_file

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet")

_BATCH_ROWS = 256
_MAX_LINE = 64 * 2**20  # bytes; far more than a text that can be scored, in whatever spelling
_TOO_LONG = f"a line of more than {_MAX_LINE // 2**20} MB"
_SHOWN_COLUMNS = 20
_NUL_MARK = "\ud800"  # replaces NUL inside the CSV parser, which refuses NUL on Python 3.10


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used, and why."""

    cause: str


Record = Mapping[str, Any] | BadRow


def read_records(
    source: str, required: Sequence[str], optional: Sequence[str], split: str
) -> Iterator[tuple[int, Record]]:
    """Yield `(row number, record)` from a file (chosen by its suffix) or a Hub data set.

    Args:
        source (`str`):
            A file with one of `SUFFIXES`, or what `datasets.load_dataset` takes.
        required (`Sequence[str]`):
            Columns that must exist.
        optional (`Sequence[str]`):
            Columns that are read where they exist.
        split (`str`):
            Split of a Hub data set.

    Raises:
        InputError: the source is missing, of an unknown format, damaged, or lacks a required column.
    """
    path = Path(source)
    looks_like_a_path = source.lower().endswith(SUFFIXES) or path.is_absolute() or source.startswith((".", "~"))
    if not source or ((looks_like_a_path or path.exists()) and not path.is_dir()):
        regular_file(source)
    if not path.is_file():
        yield from _read_hub(source, required, optional, split)
    elif source.lower().endswith((".jsonl", ".jsonl.gz")):
        yield from _read_jsonl(path, required)
    elif source.lower().endswith((".csv", ".csv.gz")):
        yield from _read_csv(path, required, optional)
    elif source.lower().endswith(".parquet"):
        yield from _read_parquet(path, required, optional)
    else:
        raise InputError(f"{source}: the format is not known; name the file {', '.join(SUFFIXES)}")


def one_line(cause: object) -> str:
    """The message of an exception on one line, at most 300 characters."""
    return " ".join(str(cause).split())[:300]


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with reading(f"{path}: cannot be read"):
        return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _missing(column: str, existing: Iterable[str]) -> str:
    names = [repr(name) for name in existing]
    more = f" and {len(names) - _SHOWN_COLUMNS:,} more" if len(names) > _SHOWN_COLUMNS else ""
    return f"no column {column!r}; the columns are {', '.join(names[:_SHOWN_COLUMNS]) or 'none'}{more}"


def _check_columns(source: object, required: Iterable[str], optional: Iterable[str], existing: Sequence[str]) -> None:
    for column in required:
        if column not in existing:
            raise InputError(f"{source}: {_missing(column, existing)}")
    for column in (*required, *optional):
        if existing.count(column) > 1:
            raise InputError(f"{source}: column {column!r} is there {existing.count(column)} times")


def _read_jsonl(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Record]]:
    number = 0
    with _open(path) as file:
        while True:
            with reading(f"{path}, row {number + 1}: cannot be read"):
                line = file.readline(_MAX_LINE + 1)
            if not line:
                return
            number += 1
            if len(line) > _MAX_LINE:
                yield number, BadRow(_TOO_LONG)
                while line and not line.endswith(b"\n"):
                    with reading(f"{path}, row {number}: cannot be read"):
                        line = file.readline(2**20)
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")  # the byte order mark that Windows editors write
            if line.strip():
                yield number, _parse_json(line, required)


def _parse_json(line: bytes, required: Sequence[str]) -> Record:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadRow(f"invalid UTF-8 at byte {error.start + 1}: {error.reason}")
    if "\0" in text:
        return BadRow(f"NUL byte at character {text.index(chr(0)) + 1}")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # thousands of nested brackets exhaust the stack
        return BadRow(f"invalid JSON: {one_line(error)}")
    if not isinstance(record, dict):
        return BadRow(f"a JSON object was expected, not {type(record).__name__}")
    for column in required:
        if column not in record:
            return BadRow(_missing(column, record))
    return record


def _read_csv(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, Record]]:
    number = 0
    previous_limit = csv.field_size_limit(_MAX_LINE)  # of the whole process, so it is put back
    try:
        with _open(path) as file, io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline="") as text:
            rows = csv.reader(_csv_lines(text), strict=True)
            with reading(f"{path}, row 1: cannot be read"):
                header = next(rows, [])
            _check_columns(path, required, optional, header)
            while True:
                with reading(f"{path}, row {number + 1}: cannot be read"):
                    fields = _next_fields(rows)
                if fields is None:
                    return
                if fields:
                    number += 1
                    yield number, _csv_record(header, fields)
    finally:
        csv.field_size_limit(previous_limit)


def _next_fields(rows: Iterator[list[str]]) -> list[str] | BadRow | None:
    """The fields of the next row; none of an empty line, `None` at the end."""
    try:
        return next(rows, None)
    except csv.Error as error:
        return BadRow(f"invalid CSV: {one_line(error)}")


def _csv_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:  # where the next row begins cannot be said: it may be inside quotes
            raise OSError(_TOO_LONG)
        yield line.replace("\0", _NUL_MARK)


def _csv_record(header: Sequence[str], fields: Sequence[str] | BadRow) -> Record:
    if isinstance(fields, BadRow):
        return fields
    if len(fields) != len(header):
        return BadRow(f"{len(fields)} fields where the header has {len(header)}")
    record = {column: field.replace(_NUL_MARK, "\0") for column, field in zip(header, fields, strict=True)}
    return _checked_encoding(record)


def _checked_encoding(record: dict[str, Any]) -> Record:
    """The record, or a `BadRow` where a string holds bytes that were no UTF-8 (decoded with `surrogateescape`)."""
    for column, value in record.items():
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                return BadRow(f"invalid UTF-8 in column {column!r} at character {error.start + 1}")
    return record


def _read_parquet(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, Record]]:
    with reading(f"{path}, row 1: cannot be read"):
        file = pq.ParquetFile(path)
        existing = file.schema_arrow.names
    with file:
        _check_columns(path, required, optional, existing)
        columns = [column for column in dict.fromkeys([*required, *optional]) if column in existing]
        yield from _batched(path, file.iter_batches(_BATCH_ROWS, columns=columns), columns)


def _read_hub(
    source: str, required: Sequence[str], optional: Sequence[str], split: str
) -> Iterator[tuple[int, Record]]:
    import datasets  # costs a second, and most sources are files

    if Path(source).is_dir():
        for path in Path(source).rglob("*"):
            if path.exists() and not path.is_dir():
                regular_file(path)  # datasets would open a pipe, and wait for ever
    local = Path(source).is_dir()
    with (
        reading(f"{source}: no such file, and no data set with a split {split!r} can be loaded"),
        nullcontext() if local or _hub_answers(source) else _offline(),
    ):
        dataset = datasets.load_dataset(source, split=split)
    _check_columns(source, required, optional, dataset.column_names)
    columns = [column for column in dict.fromkeys([*required, *optional]) if column in dataset.column_names]
    tables = dataset.select_columns(columns).with_format("arrow").iter(_BATCH_ROWS)
    yield from _batched(source, tables, columns)


def _hub_answers(source: str) -> bool:
    """Ask the Hub once: `datasets` would try for half a minute before it says that there is no network."""
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from ugap.models.hub import NETWORK_ERRORS

    try:
        dataset_info(source, timeout=10)
    except (HfHubHTTPError, HFValidationError):
        return True  # it was reached; what it or the name lacks, `datasets` says
    except NETWORK_ERRORS:
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Let `datasets` look in its cache alone."""
    import datasets
    import huggingface_hub.constants

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _batched(
    source: object, tables: Iterable[pa.Table | pa.RecordBatch], columns: Sequence[str]
) -> Iterator[tuple[int, Record]]:
    number, rest = 1, iter(tables)
    while True:
        with reading(f"{source}, row {number}: cannot be read"):
            table = next(rest, None)
            if table is None:
                return
            values = [_arrow_values(table.column(column)) for column in columns]
        for row in zip(*values, strict=True):
            yield number, _checked_encoding(dict(zip(columns, row, strict=True)))
            number += 1


def _arrow_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    if pa.types.is_dictionary(column.type):  # repeated strings that are stored once, such as pandas' categories
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        # Arrow does not check UTF-8: to_pylist() of strings would raise at the first bad row and lose the others.
        binary = column.cast(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary())
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in binary.to_pylist()]
    return column.to_pylist()
