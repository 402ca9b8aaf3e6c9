"""The cache folder: entries that are made once and are whole or absent.

An entry is a folder. It is built under a temporary name in the same folder, synced, and then renamed. So a killed
process, a full disk or a failed check never leaves half an entry where a reader looks. Builders of one entry
queue on a file lock and look again once they hold it; the holder is alone, so whatever temporary folder it finds was
left by a killed process and is removed.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ugap.errors import InputError
from ugap.models.console import announced


def cache_dir() -> Path:
    """The folder that keeps fetched assets: the environment variable `UGAP_CACHE`, else the platform's cache folder.

    Example:
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, {"UGAP_CACHE": "elsewhere"}):
        ...     cache_dir().name
        'elsewhere'
    """
    folder = os.environ.get("UGAP_CACHE")
    return Path(folder).expanduser().absolute() if folder else Path(platformdirs.user_cache_dir("ugap"))


def ensure_entry(entry: Path, build: Callable[[Path], object], *, room: int = 0) -> Path:
    """Return the folder `entry`, and have `build` fill it first where it does not exist.

    Args:
        entry (`Path`): The folder to be.
        build (`Callable[[Path], object]`): Fills the empty temporary folder that it is given.
        room (`int`, *optional*, defaults to `0`): Free bytes that building takes, asked of the disk beforehand.

    Raises:
        InputError: The disk is full or the cache folder cannot be written; nothing is left behind.
    """
    if entry.is_dir():
        return entry
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _alone(entry):
            if not entry.is_dir():
                _build_entry(entry, build, room)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{entry}: cannot be written: {error}") from error
    return entry


def drop_entry(entry: Path) -> None:
    """Remove an entry, and what killed builds of it left; part of an entry is never seen."""
    if entry.parent.is_dir():
        with _alone(entry):
            if entry.is_dir():
                entry.rename(_temporary(entry))
            _remove_leftovers(entry)


@contextmanager
def _alone(entry: Path) -> Iterator[None]:
    """Hold the lock of `entry`; say so on stderr where another process has it."""
    lock = FileLock(entry.parent / f".{entry.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with announced(f"waiting for another process that makes {entry.name}"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build_entry(entry: Path, build: Callable[[Path], object], room: int) -> None:
    _remove_leftovers(entry)
    free = shutil.disk_usage(entry.parent).free
    if free < room:
        raise InputError(f"{entry}: needs {room / 1e9:.1f} GB of free disk, {free / 1e9:.1f} GB are left")
    temporary = _temporary(entry)
    temporary.mkdir()
    try:
        build(temporary)
        # The content goes to disk before the name: after a power cut a renamed folder must not hold empty files.
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(entry.parent)


def _remove_leftovers(entry: Path) -> None:
    for leftover in entry.parent.glob(f".{entry.name}.*.partial"):
        shutil.rmtree(leftover, ignore_errors=True)


def _temporary(entry: Path) -> Path:
    return entry.parent / f".{entry.name}.{uuid.uuid4().hex[:12]}.partial"


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
