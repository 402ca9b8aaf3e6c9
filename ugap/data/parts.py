"""Parquet parts: what a long job has finished, kept so that a kill at any instant loses at most the unit at work.

- A part is one finished unit. It is written under a temporary name and renamed, so it is whole or absent.
- A part that cannot be read again in full (page checksums are on), belongs to another key, or has another schema counts
  as not done, so that its unit is made anew.
- The settings of the job lie next to the parts. Resuming with other settings would mix two jobs in one table: an error.
- Several processes may share a folder, as long as they write different keys or the same rows.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ugap.errors import InputError
from ugap.files import replacing, write_json

_SETTINGS = "settings.json"
_SUFFIX = ".part.parquet"
_KEY, _ROWS = b"ugap.key", b"ugap.rows"
_GROUP_BYTES = 8 * 2**20  # parts are gathered to row groups of about this size when they are merged


def part_key(*labels: str, weights: str, content: object) -> str:
    """The key of a part, from all that it depends on: whose weights made it, and of what.

    Args:
        *labels (`str`): What a person tells the part by.
        weights (`str`): Weight hash of the model that made it.
        content (`object`): Texts, token ids and settings, in types whose `repr` tells them apart.

    Example:
        >>> part_key("ancestral", "creative", weights="0f3a", content=["Once upon a time"])
        'ancestral|creative|0f3a|38712cde2baaba2f'
    """
    return "|".join((*labels, weights, content_hash(content)))


def content_hash(content: object) -> str:
    """A fingerprint of what texts, token ids and settings are, 16 hexadecimal digits, by their `repr`."""
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).hexdigest()[:16]


class PartStore:
    """A folder of Parquet parts, one per finished unit of work; merged into one file at the end.

    Args:
        folder (`str` or `Path`):
            Folder of the parts, made where it is absent. It belongs to the store alone.
        schema (`pyarrow.Schema`):
            Columns of a part. Every row has to have exactly these.
        settings (`Mapping[str, Any]`):
            What the rows depend on, as values that JSON can hold.

    Raises:
        InputError: the folder holds parts of a job with other settings; the message names the first that differs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = PartStore(folder + "/parts", pa.schema({"n": pa.int64()}), {"seed": 0})
        ...     for key in ("a", "b"):
        ...         if not store.done(key):
        ...             store.write(key, [{"n": ord(key)}])
        ...     store.merge(folder + "/numbers.parquet", ["b", "a"])
        ...     pq.read_table(folder + "/numbers.parquet").to_pylist()
        [{'n': 98}, {'n': 97}]
    """

    def __init__(self, folder: str | Path, schema: pa.Schema, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.schema = schema.remove_metadata()
        self.folder.mkdir(parents=True, exist_ok=True)
        # Through JSON and back, tuples are lists as in the file that they are compared with.
        self._check_settings(json.loads(json.dumps(dict(settings))))

    def done(self, key: str) -> bool:
        """Whether the part of `key` is there and whole (it is read in full)."""
        return self._read_table(key) is not None

    def write(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the part of `key`, which may be empty, in place of an older one.

        Raises:
            ValueError: a row whose columns are not those of the schema.
        """
        for row in rows:
            if row.keys() != set(self.schema.names):
                odd = sorted(row.keys() ^ set(self.schema.names))
                raise ValueError(f"a row of part {key!r} and the schema differ in {', '.join(odd)}")
        schema = self.schema.with_metadata({_KEY: key.encode(), _ROWS: str(len(rows)).encode()})
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
        with replacing(self._path(key)) as temporary:
            # Without checksums a flipped bit of a float would read as another number.
            pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)

    def read(self, key: str) -> list[dict[str, Any]]:
        """The rows of a finished part.

        Raises:
            KeyError: the part is not done.
        """
        return self._finished(key).to_pylist()

    def merge(self, path: str | Path, keys: Sequence[str]) -> None:
        """Write the rows of the parts of `keys`, in that order, to one Parquet file.

        Memory stays flat: a few megabytes of rows, or the largest part, at a time. The parts stay.

        Raises:
            KeyError: a part is not done; no file is written then.
        """
        with (
            replacing(path) as temporary,
            pq.ParquetWriter(temporary, self.schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            group: list[pa.Table] = []
            size = 0
            for key in keys:
                table = self._finished(key)
                group.append(table)
                size += table.nbytes
                if size >= _GROUP_BYTES:
                    writer.write_table(pa.concat_tables(group))
                    group, size = [], 0
            if group:
                writer.write_table(pa.concat_tables(group))

    def prune(self, keys: Collection[str]) -> None:
        """Remove the parts of other keys: those that no longer belong to the job."""
        kept = {self._path(key) for key in keys}
        for path in self.folder.glob(f"*{_SUFFIX}"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the parts, what a kill left half-written, and the settings; the folder too if it is empty then."""
        for path in [*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob(f".*{_SETTINGS}"), self.folder / _SETTINGS]:
            path.unlink(missing_ok=True)  # the settings go last: parts without settings would be refused
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        readable = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")[:48]
        # A person finds the part by its readable half; the hash keeps keys apart that read alike.
        return self.folder / f"{readable}-{hashlib.sha256(key.encode()).hexdigest()[:32]}{_SUFFIX}"

    def _finished(self, key: str) -> pa.Table:
        table = self._read_table(key)
        if table is None:
            raise KeyError(f"part {key!r} in {self.folder} is not done")
        return table

    def _read_table(self, key: str) -> pa.Table | None:
        try:
            content = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        try:
            table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError):
            return None
        metadata = table.schema.metadata or {}
        if metadata.get(_KEY) != key.encode() or metadata.get(_ROWS) != str(table.num_rows).encode():
            return None
        table = table.replace_schema_metadata(None)
        return table if table.schema.equals(self.schema) else None

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.folder / _SETTINGS
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if any(not part.name.startswith(".") for part in self.folder.glob(f"*{_SUFFIX}")):
                raise InputError(f"{self.folder}: there are parts but no {_SETTINGS}; remove the folder") from None
            write_json(path, settings)
            return
        except ValueError as error:
            raise InputError(f"{path}: not the settings of a job ({error}); remove the folder") from error
        if not isinstance(old, dict):
            raise InputError(f"{path}: not the settings of a job; remove the folder")
        for name in [*settings, *old]:
            if json.dumps(old.get(name, _ABSENT)) != json.dumps(settings.get(name, _ABSENT)):
                raise InputError(
                    f"{self.folder}: the setting {name!r} was {_shown(old, name)} and is {_shown(settings, name)} now; "
                    "resume with the old settings or choose another folder"
                )


_ABSENT = {"ugap": "absent"}


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return json.dumps(settings[name], ensure_ascii=False) if name in settings else "absent"
