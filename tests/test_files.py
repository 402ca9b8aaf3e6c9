"""Files and folders that commands read and write: what is refused, what a kill leaves, who may write."""

import contextlib
import errno
import fcntl
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ugap.errors import InputError
from ugap.files import locked, output_file, regular_file, replacing, write_json


@contextlib.contextmanager
def process(code: str, *arguments: object) -> Iterator[subprocess.Popen]:
    """A Python process that has printed `ready`; it is killed at the end."""
    words = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        yield running
        running.send_signal(signal.SIGKILL)


WRITING = """
import sys, time
from ugap.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""
HOLDING = """
import sys, time
from ugap.files import locked
with locked(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(60)
"""


def write(path: Path | str, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with process(WRITING, path):
        pass
    assert len(names(tmp_path)) == 2
    assert path.read_text() == "old"
    write(path)
    assert names(tmp_path) == ["a.json"]
    assert path.read_text() == "new"


def test_a_living_writer_keeps_its_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with process(WRITING, path):
        write(path)
        left = [name for name in names(tmp_path) if name != "a.json"]
        assert len(left) == 1
        assert (tmp_path / left[0]).read_text() == "half"


def test_only_leftovers_of_the_same_file_are_removed(tmp_path: Path) -> None:
    others = [".0123456789ab.b.json", ".hidden.a.json", ".0123456789AB.a.json", "x.a.json"]
    for name in [*others, ".0123456789ab.a.json"]:
        (tmp_path / name).touch()
    write(tmp_path / "a.json")
    assert names(tmp_path) == sorted([*others, "a.json"])


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text(str(1 // 0))
    assert names(tmp_path) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("elsewhere/a.json")
    write(link)  # to a file that does not exist yet
    write(link, "again")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "a.json").read_text() == "again"
    assert names(tmp_path / "elsewhere") == ["a.json"]


def test_links_in_a_circle_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="loop: cannot be written: Too many levels of symbolic links"):
        write(tmp_path / "loop")


def test_permissions_are_kept_and_new_files_follow_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.touch()
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        write(old)
        write(new)
    finally:
        os.umask(before)
    assert oct(old.stat().st_mode)[-3:] == "640"
    assert oct(new.stat().st_mode)[-3:] == "640"
    assert old.read_text() == "new"


def test_what_is_no_regular_file_is_no_output(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "to-null").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, kind in [("pipe", "a pipe"), ("folder", "a folder"), ("to-null", "a device"), ("socket", "a socket")]:
            with pytest.raises(InputError, match=f"{name}: {kind}, not a .*file; choose another output"):
                write(tmp_path / name)
    assert (tmp_path / "to-null").is_symlink()
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize(
    "path",
    ["file/below.json", "/proc/ugap/a.json", "/proc/a.json", "a\0b", "x" * 300, "\ud800"],
    ids=["below a file", "below proc", "in proc", "nul", "long", "surrogate"],
)
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    for use in (write, lambda path: locked(path).__enter__()):
        with pytest.raises(InputError, match="cannot be written: "):
            use(path)


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    message = "a.json: cannot be written: No space left on device"
    with pytest.raises(InputError, match=message), replacing(tmp_path / "a.json"):
        Path("/dev/full").write_text("x" * 10)
    assert names(tmp_path) == []


def test_other_errors_of_the_block_pass(tmp_path: Path) -> None:
    with pytest.raises(BrokenPipeError), replacing(tmp_path / "a.json"):
        raise BrokenPipeError(errno.EPIPE, "")


def test_no_name_is_no_output() -> None:
    for use in (output_file, regular_file):
        with pytest.raises(InputError, match="names no"):
            use("")


def test_only_a_regular_file_is_read(tmp_path: Path, pipe: Path) -> None:
    path = tmp_path / "a.json"
    path.touch()
    (tmp_path / "link").symlink_to(path)
    assert regular_file(path) == path
    assert regular_file(str(tmp_path / "link")) == tmp_path / "link"
    refused: list[tuple[str | Path, str]] = [
        (pipe, "a pipe, not a regular file"),
        ("/dev/zero", "a device, not a regular file"),
        (tmp_path, "a folder, not a file"),
        (tmp_path / "none", "no such file"),
        (path / "below", "cannot be read: Not a directory"),
        ("a\0b", "cannot be read: embedded null byte"),
    ]
    for wrong, message in refused:
        with pytest.raises(InputError, match=message):
            regular_file(wrong)


@pytest.mark.parametrize("kind", ["file", "folder", "new"])
def test_one_process_at_a_time_writes_to_an_output(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    before = names(tmp_path)
    with process(HOLDING, path):
        for same in (path, str(path) + "/", tmp_path / "." / "out"):
            with pytest.raises(InputError, match="another process is writing there"), locked(same):
                pass
        with locked(tmp_path / "other"):
            pass
    with locked(path):  # the kernel released the lock of the killed process
        pass
    assert names(tmp_path) == before


def test_a_lock_holds_whether_or_not_its_folder_is_made_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "qwen-2.5"
    with locked(path):
        path.mkdir()
        with pytest.raises(InputError, match="another process"), locked(path):
            pass
    assert names(path) == []


def test_the_other_processes_of_a_job_take_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(tmp_path / "out"):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with locked(tmp_path / "out"):
            pass
        assert names(tmp_path) == [".out.lock"]


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".0123456789ab.a.json").touch()
    with locked(tmp_path / "out"), locked(tmp_path / "out"):
        write(tmp_path / "a.json")
    assert names(tmp_path) == [".0123456789ab.a.json", "a.json"]  # who can say that its writer was killed?


def test_a_lock_that_is_removed_between_opening_and_locking_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    calls: list[int] = []

    def late(descriptor: int, operation: int) -> None:
        if not calls:
            (tmp_path / ".out.lock").unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "out"):
        assert len(calls) == 2
        assert names(tmp_path) == [".out.lock"]


def test_json_is_written_whole_and_holds_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gap.json"
    write_json(path, {"ci95": (math.nan, math.inf), "gap": 0.5, "ü": [{"p": -math.inf}]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ci95": [None, None], "gap": 0.5, "ü": [{"p": None}]}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_json(path, {"gap": object()})
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["gap.json"]
