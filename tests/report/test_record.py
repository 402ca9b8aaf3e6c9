"""What a study's record must look like: every damage is one line that names the file and the field."""

import copy
import json
import os
import time

import pytest

from ugap.errors import InputError
from ugap.report.page.record import MOST_BYTES, read_command, read_record, read_settings
from ugap.report.tables import markdown


@pytest.fixture(scope="module")
def record(evil_folder):
    record = json.loads((evil_folder / "gap.json").read_text(encoding="utf-8"))
    assert record["gaps"]
    assert record["contrasts"]
    return record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "gap.json"


def refused(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < 400
    return line.removeprefix(f"{path}: ")


def test_a_record_is_read_as_it_was_written(record, path):
    assert read_record(path) is None
    path.write_text(json.dumps(record), encoding="utf-8")
    assert read_record(path) == record


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (("gaps",), None, "gaps: not a list of rows"),
        (("contrasts",), {}, "contrasts: not a list of rows"),
        (("gaps", 0), "row", "gaps, row 1: not a row"),
        (("gaps", 2, "ci95"), [], "gaps, row 3: ci95 is [], not a lower and an upper end, or null"),
        (("gaps", 0, "ci95"), [0.1], "gaps, row 1: ci95 is [0.1]"),
        (("gaps", 0, "ci95"), [2.0, 1.0], "gaps, row 1: ci95 is [2.0, 1.0]"),
        (("gaps", 0, "ci95"), [None, 1.0], "gaps, row 1: ci95 is [null, 1.0]"),
        (("gaps", 0, "gap"), "0.3", 'gaps, row 1: gap is "0.3", not a finite number or null'),
        (("gaps", 0, "gap"), True, "gaps, row 1: gap is true"),
        (("gaps", 0, "human"), float("nan"), "gaps, row 1: human is NaN"),
        (("gaps", 0, "human"), float("inf"), "gaps, row 1: human is Infinity"),
        (("gaps", 0, "human"), 10**400, "gaps, row 1: human is 1000"),
        (("gaps", 0, "n"), 3.5, "gaps, row 1: n is 3.5, not a whole number, 0 or more"),
        (("gaps", 0, "n"), -1, "gaps, row 1: n is -1"),
        (("gaps", 0, "domain"), ["x" * 10_000], "gaps, row 1: domain is"),
        (("gaps", 0, "p_adjusted"), "gone", "gaps, row 1: p_adjusted is"),
        (("contrasts", 0, "contrast"), "other", 'contrasts, row 1: contrast is "other", not one of domain, stage'),
        (("contrasts", 0, "contrast"), [], "contrasts, row 1: contrast is []"),
        (("contrasts", 0, "n_sources"), [], "contrasts, row 1: n_sources is []"),
        (("contrasts", 0, "difference"), {}, "contrasts, row 1: difference is {}"),
        (("settings",), [], "settings: not values by name"),
        (("settings", "seed"), -1, "settings: seed is -1"),
        (("settings", "seed"), "0", 'settings: seed is "0"'),
        (("settings", "environment"), "x", 'settings: environment is "x"'),
        (("settings", "weight_hashes"), {"m": 1}, "settings: weight_hashes is"),
        (("settings", "note"), "x" * 2_000_000, "settings: more than 1,048,576 characters"),
        (("version",), "1", "not the record of a study"),
        (("version",), True, "not the record of a study"),
        (("version",), -1, "not the record of a study"),
    ],
)
def test_a_damaged_field_is_named(record, path, keys, value, line):
    damaged = copy.deepcopy(record)
    *keys, last = keys
    inner = damaged
    for key in keys:
        inner = inner[key]
    inner[last] = value
    path.write_text(json.dumps(damaged), encoding="utf-8")
    assert refused(read_record, path).startswith(line)


@pytest.mark.parametrize("name", ["domain", "prompting", "ci95", "n_dropped", "wasserstein"])
def test_a_missing_field_is_named(record, path, name):
    damaged = copy.deepcopy(record)
    del damaged["gaps"][1][name]
    path.write_text(json.dumps(damaged), encoding="utf-8")
    assert refused(read_record, path) == f"gaps, row 2: {name} is missing"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "invalid JSON"),
        (b'{"version": 1', "invalid JSON"),
        (b"[]", "not the record of a study"),
        (b"null", "not the record of a study"),
        (b"\xff\xfe{}", "not UTF-8 text (byte 0)"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"settings": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply"),
        (b'{"version": ' + b"1" * 5000 + b"}", "invalid JSON"),
    ],
)
def test_what_is_no_record(path, content, line):
    path.write_bytes(content)
    assert refused(read_record, path).startswith(line)


def test_a_huge_file_is_not_read(path):
    with open(path, "wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert refused(read_record, path) == f"{MOST_BYTES + 1:,} bytes; a study's record has at most {MOST_BYTES:,}"


@pytest.mark.parametrize("read", [read_record, read_settings, read_command])
def test_a_pipe_or_a_folder_is_not_opened(read, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe" in refused(read, tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert "a folder" in refused(read, tmp_path / "folder")


def test_settings_of_a_study_that_still_runs(tmp_path):
    path = tmp_path / "settings.json"
    assert read_settings(path) == {}
    path.write_text('{"seed": 3, "stages": {"m": "base"}, "revisions": null}')
    assert read_settings(path) == {"seed": 3, "stages": {"m": "base"}, "revisions": None}
    path.write_text('{"stages": ["m"]}')
    assert refused(read_settings, path) == 'settings: stages is ["m"], not text by model'


class TestCommand:
    @pytest.mark.parametrize(
        "command",
        [
            "ugap measure --data demo",
            "ugap measure --data 'a ```` b'",
            "ugap measure --data 'x\n## Command\n\n```sh\nother\n```\n'",
            "ugap measure --data 'two\n\nlines'",
        ],
    )
    def test_it_comes_back(self, tmp_path, command):
        path = tmp_path / "gap.md"
        path.write_text(markdown([], [], {"note": "## Command\n\n```sh\nnot this\n```"}, command), encoding="utf-8")
        assert read_command(path) == command

    @pytest.mark.parametrize("text", ["", "# Notes\n", "## Command\n\n```sh\nugap\n", "```", "## Command\n\n```sh```"])
    def test_there_is_none(self, tmp_path, text):
        path = tmp_path / "gap.md"
        assert read_command(path) is None
        path.write_text(text, encoding="utf-8")
        assert read_command(path) is None

    def test_other_bytes_are_named(self, tmp_path):
        path = tmp_path / "gap.md"
        path.write_bytes(b"# The gap\n\xff")
        assert refused(read_command, path) == "not UTF-8 text (byte 10)"

    @pytest.mark.parametrize("block", ["## Command\n\n```sh\n", "```\n", "\n## Command\n\n````sh\nx\n```\n", "`"])
    def test_a_long_file_takes_no_time(self, tmp_path, block):
        """A regular expression took a time that grew with the square of the headings."""
        path = tmp_path / "gap.md"
        path.write_text(block * (2_000_000 // len(block)), encoding="utf-8")
        begin = time.perf_counter()
        read_command(path)
        assert time.perf_counter() - begin < 2
