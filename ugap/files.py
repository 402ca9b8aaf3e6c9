"""Files and folders that a command reads and writes: refuse unfit paths, replace files whole, lock outputs.

- A file is whole or absent. It is written under a temporary name, synced, then renamed.
- A writer holds a lock of the kernel (`flock`) on its temporary file. The kernel releases it when the process ends,
  however it ends. So the next writer of the same file finds what a killed one left behind, and removes it.
- Pipes, devices and sockets are refused before they are opened: opening one may wait for ever or destroy it.

What the system refuses is one line: an [`InputError`][] that names the path.
"""

import csv
import errno
import json
import math
import os
import stat
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ugap.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no flock: files are replaced there all the same, without locks
    fcntl = None  # type: ignore[assignment]

# What a disk may answer in the middle of writing.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
# What flock answers where another process holds the lock, and where the file system knows no locks.
_HELD = {errno.EAGAIN, errno.EACCES}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


def regular_file(path: str | Path) -> Path:
    """Return `path` where it is a regular file, or a link to one, that can be opened without waiting.

    Raises:
        InputError: There is nothing, a folder, a pipe, a device or a socket; or the name cannot be one of a file.

    Example:
        >>> regular_file("/dev/null")
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: /dev/null: a device, not a regular file
    """
    if not str(path):
        raise InputError("'' names no file")
    with _refusals(path, "cannot be read"):
        mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: {_kind(mode)}, not a {'' if stat.S_ISDIR(mode) else 'regular '}file")
    return Path(path)


def output_file(path: str | Path) -> Path:
    """Return the file that writing to `path` replaces, which lies elsewhere where `path` is a link; make its folder.

    Raises:
        InputError: It is a folder, a pipe, a device or a socket; its folder cannot be made.

    Example:
        >>> output_file("/dev/null")
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: /dev/null: a device, not a regular file; choose another output
    """
    if not str(path):
        raise InputError("'' names no file to write")
    with _refusals(path, "cannot be written"):
        target = Path(os.path.realpath(path))
        try:
            mode = os.stat(target).st_mode
        except FileNotFoundError:
            target.parent.mkdir(parents=True, exist_ok=True)
            return target
    if not stat.S_ISREG(mode):
        regular = "" if stat.S_ISDIR(mode) else "regular "
        raise InputError(f"{path}: {_kind(mode)}, not a {regular}file; choose another output")
    return target


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; move it onto `path` when the block ends well, remove it when it does not.

    The temporary name keeps the suffixes of `path` (writers that choose a format by suffix work) and starts with a dot,
    and it is unique, so that two processes never write to one file. A link stays a link: what it points to is replaced.
    An existing file keeps its permissions.

    Raises:
        InputError: `path` is a folder, a pipe, a device or a socket; or the system refuses: a missing permission, a
            full disk.

    Example:
        >>> with replacing("numbers.json") as temporary:
        ...     _ = temporary.write_text("[1, 2]")
        >>> Path("numbers.json").read_text()
        '[1, 2]'
        >>> Path("numbers.json").unlink()
    """
    target = output_file(path)
    with _refusals(path, "cannot be written"):
        _remove_leftovers(target)
        temporary, descriptor = _temporary(target)
    try:
        with _full_disk(path):
            yield temporary
        with _refusals(path, "cannot be written"):
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        if descriptor is not None:
            os.close(descriptor)


def write_json(path: str | Path, content: Any, *, indent: int | None = 1) -> None:
    """Write `content` as a JSON file that is whole or absent; a number that is not finite is written as `null`.

    Args:
        path (`str` or `Path`): The file.
        content (`Any`): Objects, lists, strings and numbers.
        indent (`int`, *optional*, defaults to `1`): Spaces a level; `None` writes one line.

    Raises:
        InputError: As `replacing`.

    Example:
        >>> write_json("gap.json", {"gap": 0.5, "p_value": math.nan}, indent=None)
        >>> Path("gap.json").read_text()
        '{"gap": 0.5, "p_value": null}\\n'
        >>> Path("gap.json").unlink()
    """
    text = json.dumps(without_nan(content), indent=indent, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as a table for a spreadsheet: UTF-8, a header, and an empty cell for `None` and NaN.

    Args:
        path (`str` or `Path`): The file.
        rows (`Sequence[Mapping[str, Any]]`): The rows, with the same fields.

    Example:
        >>> write_csv("gap.csv", [{"model": "=1+1", "gap": 0.5, "p": None}])
        >>> Path("gap.csv").read_text()
        "model,gap,p\\n'=1+1,0.5,\\n"
        >>> Path("gap.csv").unlink()
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        table.writeheader()
        table.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    # A spreadsheet runs a cell that begins with one of these as a formula, so a name that does gets an apostrophe.
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return None if isinstance(value, float) and math.isnan(value) else value


def without_nan(value: Any) -> Any:
    """Replace the numbers that JSON cannot hold by `None`, at every depth; tuples become lists.

    Example:
        >>> without_nan({"gaps": (0.5, math.nan)})
        {'gaps': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_results(folder: str | Path, resume: bool, *made: str) -> None:
    """Refuse a path that is no folder, and, unless the run is resumed, a folder that holds results already.

    Args:
        folder (`str` or `Path`): The folder of the results.
        resume (`bool`): Whether the run continues these results.
        made (`str`): Names of what a run leaves in it.

    Raises:
        InputError: The folder is refused.
    """
    if not str(folder):
        raise InputError("'' names no folder to write to")
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"{folder}: not a folder; choose another output")
    if not resume and any((Path(folder) / name).exists() for name in made):
        raise InputError(f"{folder}: there are results already; add --resume to continue, or choose another folder")


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the output `path`, a file or a folder, for this process alone; it need not exist.

    The lock is the file `.<name>.lock` next to `path`, or inside it where the folder around it may not be written. The
    kernel releases the lock when the process ends, however it ends. The file is removed at the end of the block; one
    that a killed process left is taken over. Under `accelerate launch` the main process alone holds the lock. Where the
    file system knows no locks, the block runs without one.

    Raises:
        InputError: Another process holds the lock, or the lock cannot be made.

    Example:
        >>> with locked("numbers.json"):
        ...     with locked("numbers.json"):
        ...         pass
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: numbers.json: another process is writing there; wait, or choose another output
    """
    from accelerate.utils import get_cpu_distributed_information

    if fcntl is None or get_cpu_distributed_information().rank > 0:
        yield
        return
    with _refusals(path, "cannot be written"):
        real = Path(os.path.realpath(path))
        real.parent.mkdir(parents=True, exist_ok=True)
        folder = real.parent if os.access(real.parent, os.W_OK) or not real.is_dir() else real
        lock = folder / f".{real.name}.lock"
        descriptor = _lock(lock)
    if descriptor is None:
        raise InputError(f"{path}: another process is writing there; wait, or choose another output")
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: whoever opened it before sees that it has gone
        os.close(descriptor)


def _lock(path: Path) -> int | None:
    """A descriptor that holds the file `path`, made where it is absent; None where another process holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _flock(descriptor):
                os.close(descriptor)
                return None
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between our opening and our locking


def _flock(descriptor: int) -> bool:
    """Take the lock of an open file without waiting: False where another process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _temporary(target: Path) -> tuple[Path, int | None]:
    """A new name next to `target`; where there are locks, a file of that name and a descriptor that holds it."""
    while True:
        path = target.parent / f".{uuid.uuid4().hex[:12]}.{target.name}"
        if fcntl is None:
            return path, None
        descriptor = _lock(path)
        if descriptor is not None:  # None: a writer of the same file took it for a leftover before it was locked
            return path, descriptor


def _remove_leftovers(target: Path) -> None:
    """Remove the temporary files of `target` that no process holds: their writers were killed."""
    if fcntl is None or not os.access(target.parent, os.R_OK):
        return
    for name in [name for name in os.listdir(target.parent) if name.endswith(f".{target.name}")]:
        mark = name.removesuffix(f".{target.name}")
        if len(mark) != 13 or mark[0] != "." or not set(mark[1:]) <= set("0123456789abcdef"):
            continue
        try:
            descriptor = os.open(target.parent / name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError:  # another process removed it, or it is not ours to remove
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(target.parent / name)
        except OSError:  # its writer lives, or the file system knows no locks
            pass
        finally:
            os.close(descriptor)


@contextmanager
def _refusals(path: str | Path, what: str) -> Iterator[None]:
    """Turn what the system says about `path` into one line."""
    try:
        yield
    except FileNotFoundError as error:
        reason = "no such file" if what == "cannot be read" else f"{what}: {_reason(error)}"
        raise InputError(f"{path}: {reason}") from error
    except OSError as error:
        raise InputError(f"{path}: {what}: {_reason(error)}") from error
    except InputError:
        raise
    except ValueError as error:  # a NUL, or a character that no file name can hold
        raise InputError(f"{path}: {what}: {error}") from error


@contextmanager
def _full_disk(path: str | Path) -> Iterator[None]:
    """Turn a disk that takes no more into one line; whatever else the block raises passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)  # pyarrow's strerror says the number twice


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISFIFO(mode):
        return "a pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"
