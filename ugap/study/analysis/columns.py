"""Columns of a text set beyond those of `load_texts`: ratings, and names of groups."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ugap.data.readers import BadRow, read_records
from ugap.errors import InputError


def first_records(
    source: str, required: Sequence[str], optional: Sequence[str], limit: int | None
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The first rows of a source, each with where it was read.

    Raises:
        InputError: If a column is missing or a row is damaged.
    """
    for taken, (number, record) in enumerate(read_records(source, required, optional, "train")):
        if taken == limit:
            return
        if isinstance(record, BadRow):
            raise InputError(f"{source}, row {number}: {record.cause}")
        yield f"{source}, row {number}", record


def read_rating(value: Any, column: str, where: str) -> float:
    """A rating as a float; NaN for null, NaN or an empty cell.

    Raises:
        InputError: If it is no number.
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{where}: column {column!r} holds {str(value)[:40]!r}, and a rating is a number")
    return number


def read_label(record: Mapping[str, Any], column: str | None, where: str) -> str:
    """The name in a column; `""` where no column is named.

    Raises:
        InputError: If the cell is empty or holds a list.
    """
    if column is None:
        return ""
    value = record[column]
    if value is None or value == "" or isinstance(value, (list, dict)):
        raise InputError(f"{where}: column {column!r} names no group")
    return str(value)
