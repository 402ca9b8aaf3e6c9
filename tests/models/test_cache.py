import multiprocessing
import resource
import threading
import time
from types import SimpleNamespace

import pytest

from ugap.errors import InputError
from ugap.models.cache import cache_dir, drop_entry, ensure_entry

FORK = multiprocessing.get_context("fork")


def build_slowly(entry, half_done, seconds):
    """Half an entry, a signal, a pause, the other half."""

    def build(folder):
        (folder / "half").write_text("1")
        half_done.set()
        time.sleep(seconds)
        (folder / "whole").write_text("2")

    ensure_entry(entry, build)


def build_too_much(entry, told):
    """Write more than the process may: what a full disk does, with another errno."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        ensure_entry(entry, lambda folder: (folder / "file").write_bytes(bytes(5000)))
    except InputError as error:
        told.put(str(error))


def started(function, *arguments):
    process = FORK.Process(target=function, args=arguments, daemon=True)
    process.start()
    return process


def names(folder):
    """What lies in a folder, without the lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_cache_dir_is_the_variable_or_the_platform_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("UGAP_CACHE")
    assert cache_dir().name == "ugap"
    assert cache_dir() != tmp_path


def test_an_entry_is_built_once(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "file").write_text("x")

    for _ in range(2):
        assert ensure_entry(tmp_path / "entry", build) == tmp_path / "entry"
    assert len(calls) == 1
    assert calls[0] != tmp_path / "entry"
    assert names(tmp_path) == ["entry"]
    assert (tmp_path / "entry" / "file").read_text() == "x"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), InputError("wrong hash"), KeyboardInterrupt()]
)
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    def build(folder):
        (folder / "half").write_text("x")
        raise error

    expected = InputError if isinstance(error, Exception) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        ensure_entry(tmp_path / "entry", build)
    assert names(tmp_path) == []
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_write_that_the_system_refuses_leaves_nothing(tmp_path):
    told = FORK.Queue()
    started(build_too_much, tmp_path / "entry", told).join()
    message = told.get(timeout=10)
    assert "cannot be written" in message
    assert "\n" not in message
    assert names(tmp_path) == []


def test_too_little_room_is_told_before_building(tmp_path, monkeypatch):
    usage = SimpleNamespace(free=2_000_000_000)
    monkeypatch.setattr("ugap.models.cache.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"needs 3\.0 GB of free disk, 2\.0 GB are left"):
        ensure_entry(tmp_path / "entry", lambda folder: pytest.fail("was built"), room=3_000_000_000)


def test_a_cache_folder_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        ensure_entry(tmp_path / "file" / "entry", lambda folder: None)


def test_a_killed_build_is_cleaned_up_by_the_next(tmp_path):
    half_done = FORK.Event()
    process = started(build_slowly, tmp_path / "entry", half_done, 60)
    assert half_done.wait(10)
    process.kill()
    process.join()
    assert not (tmp_path / "entry").exists()
    assert len(names(tmp_path)) == 1

    ensure_entry(tmp_path / "entry", lambda folder: (folder / "whole").write_text("2"))
    assert names(tmp_path) == ["entry"]
    assert names(tmp_path / "entry") == ["whole"]


def test_two_processes_build_once_and_the_second_waits(tmp_path, capfd):
    half_done = FORK.Event()
    process = started(build_slowly, tmp_path / "entry", half_done, 1)
    assert half_done.wait(10)
    ensure_entry(tmp_path / "entry", lambda folder: pytest.fail("built twice"))
    assert names(tmp_path / "entry") == ["half", "whole"]
    process.join()
    assert process.exitcode == 0
    assert "waiting for another process" in capfd.readouterr().err


def test_threads_build_once(tmp_path):
    calls = []

    def build(folder):
        calls.append(folder)
        (folder / "file").write_text("x")

    threads = [threading.Thread(target=ensure_entry, args=(tmp_path / "entry", build)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_dropping_removes_the_whole_entry_and_forgives_its_absence(tmp_path):
    ensure_entry(tmp_path / "entry", lambda folder: (folder / "file").write_text("x"))
    (tmp_path / ".entry.0123456789ab.partial").mkdir()  # as a killed build leaves it
    (tmp_path / ".entry.0123456789ab.partial" / "half").write_text("x")
    drop_entry(tmp_path / "entry")
    drop_entry(tmp_path / "entry")
    drop_entry(tmp_path / "nowhere" / "entry")
    assert names(tmp_path) == []
