"""Text sets: one `TextRow` per human text, from a file, a Hub data set, or the embedded `demo`.

Every fault is found here, before a model is loaded: empty texts, broken encodings, doubled ids. A text is kept
character for character as it was read, since the scorer reads every character.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ugap.data.demo import DEMO, read_demo
from ugap.data.readers import BadRow, Record, read_records
from ugap.errors import InputError
from ugap.unicode import text_fault

log = logging.getLogger("ugap.data")

# The longest domain or id, in characters: names appear in plots, tables and file names.
MAX_NAME = 500
KIND_COLUMN = "kind"


@dataclass(frozen=True)
class TextRow:
    """One human text, and what belongs to it.

    Attributes:
        id (`str`):
            Unique within the set.
        domain (`str`):
            `"creative"`, `"functional"`, or any other name.
        text (`str`):
            The human text; where there is a prompt, the text that answers it.
        prompt (`str`, *optional*):
            What the text answers.
        candidates (`Mapping[str, str]`, *optional*, defaults to `{}`):
            Model continuations by the name of the candidate.
        where (`str`, *optional*, defaults to `"texts"`):
            Where it was read, as errors say it: source and row.
        kind (`str`, *optional*):
            Kind of text, such as `"news"`; the domain where the data name none.
    """

    id: str
    domain: str
    text: str
    prompt: str | None = None
    candidates: Mapping[str, str] = field(default_factory=dict)
    where: str = field(default="texts", compare=False)
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.domain)


class _RowError(Exception):
    """Why a row cannot be used."""


def load_texts(
    source: str,
    *,
    text_column: str = "text",
    id_column: str = "id",
    domain_column: str = "domain",
    prompt_column: str = "prompt",
    domain: str | None = None,
    candidates: Mapping[str, str] | None = None,
    split: str = "train",
    limit: int | None = None,
    skip_bad: bool = False,
) -> list[TextRow]:
    r"""Read a text set.

    Args:
        source (`str`):
            A `.jsonl`, `.jsonl.gz`, `.csv`, `.csv.gz` or `.parquet` file; `"demo"` for the embedded set (see
            `ugap.data.demo`); anything else is taken as a data set for `datasets.load_dataset` (a Hub id or a folder).
        text_column (`str`, *optional*, defaults to `"text"`):
            Column of the human text.
        id_column (`str`, *optional*, defaults to `"id"`):
            Column of the id. A row without an id gets its row number.
        domain_column (`str`, *optional*, defaults to `"domain"`):
            Column of the domain; not needed where `domain` is given.
        prompt_column (`str`, *optional*, defaults to `"prompt"`):
            Column of the prompt, used where the data have it. A null or empty prompt is no prompt.
        domain (`str`, *optional*):
            The domain of every row, whatever the data say.
        candidates (`Mapping[str, str]`, *optional*):
            Column of the continuation by the name of the candidate. Null where it has none to a text that others have.
        split (`str`, *optional*, defaults to `"train"`):
            Split of a Hub data set.
        limit (`int`, *optional*):
            At most that many rows of each domain, in the order of the file.
        skip_bad (`bool`, *optional*, defaults to `False`):
            Log a warning for a bad row and continue, instead of raising.

    Returns:
        `list[TextRow]`: at least one row, in the order of the source.

    Raises:
        InputError: the source cannot be read, lacks a column, or has a bad row: one line, `SOURCE, row N: cause`. Rows
            are counted from 1 without a header; in JSON lines the row is the line.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("two.csv").write_text("id,text\na,Once upon a time.\nb,The end.\n")
        >>> [row.text for row in load_texts("two.csv", domain="creative")]
        ['Once upon a time.', 'The end.']
        >>> Path("two.csv").unlink()
    """
    source = str(source)
    candidates = dict(candidates or {})
    if limit is not None and limit < 1:
        raise InputError(f"{source}: limit is {limit}, and at least 1 row is needed")
    if domain is not None and not domain.strip():
        raise InputError(f"{source}: the domain is empty")
    if domain is not None and len(domain) > MAX_NAME:
        raise InputError(f"{source}: the domain has {len(domain):,} characters, and at most {MAX_NAME} make a name")
    required = [text_column, *([domain_column] if domain is None else []), *candidates.values()]
    optional = [id_column, prompt_column, KIND_COLUMN]
    seen_columns: set[str] = set()

    rows: list[TextRow] = []
    row_of_id: dict[str, int] = {}
    taken: Counter[str] = Counter()
    first_fault = ""
    for number, record in _records(source, required, optional, split):
        where = f"{source}, row {number}"
        try:
            if isinstance(record, BadRow):
                raise _RowError(record.cause)
            seen_columns.update(column for column in optional if column in record)
            row_domain = _name(_string(record, domain_column), domain_column) if domain is None else domain
            if limit is not None and taken[row_domain] >= limit:
                if domain is not None:
                    break  # all rows are of one domain: the rest of a large file need not be read
                continue
            row_id = _id(record, id_column, number)
            if row_id in row_of_id:
                raise _RowError(f"id {row_id!r} is that of row {row_of_id[row_id]} already")
            row = TextRow(
                id=row_id,
                domain=row_domain,
                text=_string(record, text_column),
                prompt=_prompt(record, prompt_column),
                candidates=_candidates(record, candidates),
                where=where,
                kind=_name(_string(record, KIND_COLUMN), KIND_COLUMN) if record.get(KIND_COLUMN) else "",
            )
        except _RowError as fault:
            message = f"{where}: {fault}"
            if not skip_bad:
                raise InputError(message) from None
            log.warning("%s (skipped)", message)
            first_fault = first_fault or message
            continue
        rows.append(row)
        row_of_id[row_id] = number
        taken[row_domain] += 1

    # A run on no text would end as if all were well.
    if not rows:
        raise InputError(f"{first_fault} (and no row is good)" if first_fault else f"{source}: there are no rows")
    # A column that was named and is not there is likely misspelt.
    for column, default in ((id_column, "id"), (prompt_column, "prompt")):
        if column != default and column not in seen_columns:
            log.warning("%s: no column %r; continuing without it", source, column)
    return rows


def _records(source: str, required: list[str], optional: list[str], split: str) -> Iterator[tuple[int, Record]]:
    if source == DEMO:
        return enumerate(read_demo(required), start=1)
    return read_records(source, required, optional, split)


def _string(record: Mapping[str, Any], column: str) -> str:
    value = record[column]
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise _RowError(f"column {column!r} holds {kind}, not a string")
    if not value.strip():
        raise _RowError(f"column {column!r} is {'only whitespace' if value else 'empty'}")
    return _checked(value, column)


def _prompt(record: Mapping[str, Any], column: str) -> str | None:
    if record.get(column) in (None, ""):
        return None
    return _string(record, column)


def _candidates(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """The continuations of a row: null where one candidate has none, while another has."""
    given = {name: column for name, column in columns.items() if record[column] is not None}
    return {name: _string(record, column) for name, column in (given or columns).items()}


def _id(record: Mapping[str, Any], column: str, number: int) -> str:
    value = record.get(column)
    if value is None or value == "":
        return str(number)
    if isinstance(value, bool) or not isinstance(value, str | int | float):  # a bool is an int to Python
        raise _RowError(f"column {column!r} holds {type(value).__name__}, not a string or a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _RowError(f"column {column!r} holds {value}, not a string or a number")
    return _name(_checked(str(value), column), column)


def _name(value: str, column: str) -> str:
    if len(value) > MAX_NAME:
        raise _RowError(f"column {column!r} holds {len(value):,} characters, and at most {MAX_NAME} make a name")
    return value


def _checked(value: str, column: str) -> str:
    if fault := text_fault(value):
        raise _RowError(f"column {column!r} holds {fault}")
    return value
