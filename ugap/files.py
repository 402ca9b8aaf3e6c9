"""Files that are whole or absent: written under a temporary name, synced, then renamed."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it onto `path` when the block ends well, remove it when it does not.

    The temporary name keeps the suffixes of `path` (writers that choose a format by suffix work) and starts with a dot,
    and it is unique, so that two processes never write to one file.

    Example:
        >>> with replacing("numbers.json") as temporary:
        ...     _ = temporary.write_text("[1, 2]")
        >>> Path("numbers.json").read_text()
        '[1, 2]'
        >>> Path("numbers.json").unlink()
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid.uuid4().hex[:12]}.{path.name}"
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
