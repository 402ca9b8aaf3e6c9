"""`load_texts`: every source gives the same rows, and every bad row is named exactly."""

import csv
import gzip
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ugap.data import TextRow, load_texts, readers
from ugap.errors import InputError

ROWS: list[dict[str, str | None]] = [
    {"id": "a", "domain": "creative", "text": 'She said:\n"No, no"; and left.', "prompt": "Write.", "gpt": "He left."},
    {"id": "b", "domain": "functional", "text": "Tür – 😀 \u2028 x", "prompt": None, "gpt": "Mix, then bake."},
    {"id": "c", "domain": "creative", "text": " kept as it is \r\n", "prompt": "", "gpt": "It was late."},
]
EXPECTED = [
    TextRow("a", "creative", 'She said:\n"No, no"; and left.', "Write.", {"gpt4": "He left."}),
    TextRow("b", "functional", "Tür – 😀 \u2028 x", None, {"gpt4": "Mix, then bake."}),
    TextRow("c", "creative", " kept as it is \r\n", None, {"gpt4": "It was late."}),
]


def jsonl(path: Path, *rows: object) -> str:
    """Write rows as JSON lines; bytes go in as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


def texts(path: Path, *values: object) -> str:
    return jsonl(path, *({"domain": "creative", "text": value} for value in values))


def write(path: Path, rows: Sequence[Mapping]) -> str:
    opener = gzip.open if path.suffix == ".gz" else open
    if ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ".csv" in path.name:
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def failure(source: str | Path, **arguments: object) -> str:
    with pytest.raises(InputError) as raised:
        load_texts(str(source), **arguments)  # type: ignore[arg-type]
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet", ".JSONL"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    source = write(tmp_path / f"set{suffix}", ROWS)
    assert load_texts(source, candidates={"gpt4": "gpt"}) == EXPECTED


def test_other_column_names(tmp_path):
    source = jsonl(tmp_path / "x.jsonl", {"key": 7, "genre": "poem", "body": "Roses.", "ask": "Go.", "text": "wrong"})
    rows = load_texts(source, text_column="body", id_column="key", domain_column="genre", prompt_column="ask")
    assert rows == [TextRow("7", "poem", "Roses.", "Go.")]


def test_given_domain_holds_for_every_row_and_needs_no_column(tmp_path):
    source = jsonl(tmp_path / "x.jsonl", {"text": "one"}, {"text": "two", "domain": "functional"})
    assert [(row.id, row.domain) for row in load_texts(source, domain="creative")] == [
        ("1", "creative"),
        ("2", "creative"),
    ]


def test_row_numbers_stand_in_for_missing_ids(tmp_path):
    rows = [{"id": None, "text": "x"}, {"id": "", "text": "x"}, {"id": 4, "text": "x"}, {"text": "x"}]
    with_gap = [json.dumps(row).encode() for row in rows[:2]] + [b""] + [json.dumps(rows[2]).encode()]
    assert [row.id for row in load_texts(jsonl(tmp_path / "x.jsonl", *with_gap), domain="d")] == ["1", "2", "4"]
    message = failure(jsonl(tmp_path / "y.jsonl", rows[2], {"text": "x"}, {"text": "x"}, {"text": "x"}), domain="d")
    assert message.endswith("y.jsonl, row 4: id '4' is that of row 1 already")


def test_byte_order_mark_and_crlf(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert [row.id for row in load_texts(str(tmp_path / "x.jsonl"), domain="d")] == ["1", "3"]
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbftext\r\n"one\r\nline"\r\n\r\ntwo\r\n')
    assert [(row.id, row.text) for row in load_texts(str(tmp_path / "x.csv"), domain="d")] == [
        ("1", "one\r\nline"),
        ("2", "two"),
    ]


def test_csv_fields_may_be_long_and_the_global_limit_stays(tmp_path):
    limit = csv.field_size_limit()
    source = write(tmp_path / "x.csv", [{"text": "word " * 100_000}])
    assert len(load_texts(source, domain="d")[0].text) == 500_000
    assert csv.field_size_limit() == limit


def test_parquet_spans_batches_and_reads_dictionary_columns(tmp_path):
    table = pa.table(
        {
            "text": pa.array([f"text {n % 7}" for n in range(1000)]).dictionary_encode(),
            "domain": pa.array(["creative"] * 1000, pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    rows = load_texts(str(tmp_path / "x.parquet"))
    assert [row.id for row in rows] == [str(n) for n in range(1, 1001)]
    assert rows[-1].text == "text 5"


def test_limit_counts_each_domain_in_file_order(tmp_path):
    rows = [{"id": f"{domain}{n}", "domain": domain, "text": "x"} for n in range(4) for domain in ("a", "b")]
    rows.append({"id": "c0", "domain": "c", "text": "x"})
    source = jsonl(tmp_path / "x.jsonl", *rows)
    assert [row.id for row in load_texts(source, limit=2)] == ["a0", "b0", "a1", "b1", "c0"]
    assert [row.id for row in load_texts(source, limit=3, domain="one")] == ["a0", "b0", "a1"]
    assert "limit is 0" in failure(source, limit=0)


def test_limit_counts_good_rows_only(tmp_path, caplog):
    source = texts(tmp_path / "x.jsonl", "", "one", "two", "three")
    assert [row.text for row in load_texts(source, limit=2, skip_bad=True)] == ["one", "two"]


BAD_TEXTS = {
    "empty": ("", "column 'text' is empty"),
    "whitespace": (" \n\t", "column 'text' is only whitespace"),
    "number": (3.5, "column 'text' holds float, not a string"),
    "null": (None, "column 'text' holds null, not a string"),
    "list": (["a"], "column 'text' holds list, not a string"),
    "nul": ("ab\0c", "column 'text' holds a NUL byte at character 3"),
    "surrogate": ("ab\ud800c", "column 'text' holds a lone surrogate (U+D800) at character 3"),
    "low surrogate": ("\udc80", "column 'text' holds a lone surrogate (U+DC80) at character 1"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_bad_text_names_file_row_and_cause(tmp_path, name, caplog):
    bad, cause = BAD_TEXTS[name]
    source = texts(tmp_path / "set.jsonl", "good", bad, "good too", bad)
    assert failure(source) == f"{source}, row 2: {cause}"
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "ugap.data"):
        assert [row.id for row in load_texts(source, skip_bad=True)] == ["1", "3"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}, row {number}: {cause} (skipped)" for number in (2, 4)
    ]
    assert {(record.name, record.levelname) for record in caplog.records} == {("ugap.data", "WARNING")}


BAD_LINES = {
    "utf-8": (b'{"domain": "d", "text": "caf\xe9"}', "invalid UTF-8 at byte 29"),
    "encoded surrogate": (b'{"domain": "d", "text": "\xed\xa0\x80"}', "invalid UTF-8 at byte 26"),
    "raw nul": (b'{"domain": "d", "text": "a\0"}', "NUL byte at character 27"),
    "json": (b'{"domain": "d", "text": "a"', "invalid JSON: "),
    "two objects": (b'{"text": "a"} {"text": "b"}', "invalid JSON: "),
    "deep": (b"[" * 100_000, "invalid JSON: "),
    "long integer": (b'{"id": ' + b"1" * 5000 + b"}", "invalid JSON: "),
    "no object": (b'["a"]', "a JSON object was expected, not list"),
    "no column": (b'{"domain": "d", "body": "a"}', "no column 'text'; the columns are 'domain', 'body'"),
    "no domain": (b'{"text": "a", "domain": null}', "column 'domain' holds null, not a string"),
    "list as id": (b'{"text": "a", "domain": "d", "id": [1]}', "column 'id' holds list, not a string or a number"),
    "number that is none as id": (b'{"text": "a", "domain": "d", "id": NaN}', "column 'id' holds nan, not a string or"),
    "endless number as id": (b'{"text": "a", "domain": "d", "id": 1e999}', "column 'id' holds inf, not a string or a"),
    "truth as id": (b'{"text": "a", "domain": "d", "id": true}', "column 'id' holds bool, not a string or a number"),
    "object as id": (b'{"text": "a", "domain": "d", "id": {}}', "column 'id' holds dict, not a string or a number"),
    "number as prompt": (b'{"text": "a", "domain": "d", "prompt": 1}', "column 'prompt' holds int, not a string"),
    "nul in prompt": (b'{"text": "a", "domain": "d", "prompt": "\\u0000"}', "column 'prompt' holds a NUL byte"),
    "surrogate in id": (b'{"text": "a", "domain": "d", "id": "\\udfff"}', "column 'id' holds a lone surrogate"),
}


@pytest.mark.parametrize("name", BAD_LINES)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_bad_line_of_json(tmp_path, name, suffix):
    line, cause = BAD_LINES[name]
    if name == "long integer" and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python reads integers of any length")
    content = b'{"domain": "d", "text": "good"}\n\n' + line + b'\n{"domain": "d", "text": "good"}'
    source = tmp_path / f"set{suffix}"
    source.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert failure(source).startswith(f"{source}, row 3: {cause}")
    assert [row.id for row in load_texts(str(source), skip_bad=True)] == ["1", "4"]


BAD_CSV_ROWS = {
    "utf-8": (b'd,"caf\xe9\n"', "invalid UTF-8 in column 'text' at character 4"),
    "utf-8 elsewhere": (b"\xff,x", "invalid UTF-8 in column 'domain' at character 1"),
    "nul": (b"d,a\0b", "column 'text' holds a NUL byte at character 2"),
    "few fields": (b"d", "1 fields where the header has 2"),
    "many fields": (b"d,a,b", "3 fields where the header has 2"),
    "empty": (b"d,", "column 'text' is empty"),
    "quote": (b'd,"a"b', "invalid CSV: "),
}


@pytest.mark.parametrize("name", BAD_CSV_ROWS)
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_bad_row_of_csv(tmp_path, name, suffix):
    row, cause = BAD_CSV_ROWS[name]
    content = b'domain,text\nd,"good\n\nstill good"\n' + row + b"\nd,good too\n"
    source = tmp_path / f"set{suffix}"
    source.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert failure(source).startswith(f"{source}, row 2: {cause}")
    assert [row.id for row in load_texts(str(source), skip_bad=True)] == ["1", "3"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_without_end_is_a_bad_row_and_never_in_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "_MAX_LINE", 2**16)
    good = b'{"domain": "d", "text": "good"}\n'
    content = good + b'{"domain": "d", "text": "' + b"a" * 10 * 2**20 + b'"}\n' + good
    source = tmp_path / f"set{suffix}"
    source.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert failure(source) == f"{source}, row 2: a line of more than 64 MB"
    tracemalloc.start()
    assert [row.id for row in load_texts(str(source), skip_bad=True)] == ["1", "3"]
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_field_without_end_ends_the_reading(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(readers, "_MAX_LINE", 2**16)
    content = b"domain,text\nd,good\nd," + b"a" * 10 * 2**20 + b"\nd,good\n"
    source = tmp_path / f"set{suffix}"
    source.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert failure(source) == f"{source}, row 2: cannot be read: a line of more than 64 MB"
    lines = b"domain,text\nd,good\n" + b'd,"' + b"a\n" * 2**16 + b'"\nd,good\n'
    source.write_bytes(gzip.compress(lines) if suffix.endswith("gz") else lines)
    assert failure(source).startswith(f"{source}, row 2: invalid CSV: field larger than field limit")


@pytest.mark.parametrize("column", ["text", "id", "prompt"])
def test_a_column_that_is_there_twice(tmp_path, column):
    names = [name for name in ("text", "id", "prompt") if name != column]
    path = tmp_path / "x.csv"
    path.write_text(f"{','.join([*names, column, column])}\na,b,c,d\n")
    assert failure(path, domain="d") == f"{path}: column {column!r} is there 2 times"
    table = pa.table([["a"]] * 4, names=[*names, column, column])
    pq.write_table(table, tmp_path / "x.parquet")
    assert f"column {column!r} is there 2 times" in failure(tmp_path / "x.parquet", domain="d")


def test_many_columns_are_not_all_named(tmp_path):
    source = jsonl(tmp_path / "x.jsonl", {f"c{i}": i for i in range(100_000)})
    assert failure(source, domain="d").endswith("'c19' and 99,980 more")


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    for name in ("x.jsonl", "x.csv.gz", "x.parquet", "folder/pipe"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    for name in ("x.jsonl", "x.csv.gz", "x.parquet"):
        assert failure(tmp_path / name, domain="d") == f"{tmp_path / name}: a pipe, not a regular file"
    assert failure(tmp_path / "folder", domain="d").endswith("folder/pipe: a pipe, not a regular file")
    assert failure("/dev/null", domain="d") == "/dev/null: a device, not a regular file"
    assert failure("", domain="d") == "'' names no file"


def test_parquet_values_that_python_cannot_hold(tmp_path):
    late = pa.array([2**60], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["a"], "id": late}), tmp_path / "x.parquet")
    assert failure(tmp_path / "x.parquet", domain="d").startswith(f"{tmp_path / 'x.parquet'}, row 1: cannot be read: ")


def test_quote_that_never_closes_is_not_taken_for_one_long_text(tmp_path):
    (tmp_path / "x.csv").write_text('text\n"one\ntwo\nthree\n')
    assert ", row 1: invalid CSV: " in failure(tmp_path / "x.csv", domain="d")


def test_bad_row_of_parquet(tmp_path):
    encoded = pa.array([b"good", b"caf\xe9", b"a\0", None, b"good"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 5, encoded.buffers())  # invalid UTF-8 passes unseen
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    source = str(tmp_path / "x.parquet")
    assert failure(source, domain="d") == f"{source}, row 2: invalid UTF-8 in column 'text' at character 4"
    assert [row.id for row in load_texts(source, domain="d", skip_bad=True)] == ["1", "5"]


def test_parquet_text_that_is_not_a_string(tmp_path):
    pq.write_table(pa.table({"text": [b"bytes"]}), tmp_path / "x.parquet")
    assert failure(tmp_path / "x.parquet", domain="d").endswith("row 1: column 'text' holds bytes, not a string")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_missing_column_is_named_with_those_that_exist(tmp_path, suffix, skip_bad):
    source = write(tmp_path / f"x{suffix}", [{"body": "a", "kind": "b"}])
    assert failure(source, skip_bad=skip_bad) == f"{source}: no column 'text'; the columns are 'body', 'kind'"
    assert "no column 'domain'" in failure(source, text_column="body", skip_bad=skip_bad)
    message = failure(source, text_column="body", domain="d", candidates={"m": "model"}, skip_bad=skip_bad)
    assert "no column 'model'" in message


def test_column_that_is_there_twice(tmp_path):
    (tmp_path / "x.csv").write_text("text,text\na,b\n")
    assert failure(tmp_path / "x.csv", domain="d").endswith("column 'text' is there 2 times")


def test_duplicate_id_names_both_rows(tmp_path):
    rows = [{"id": 1, "text": "a"}, {"id": "x", "text": "b"}, {"id": "1", "text": "c"}]
    source = jsonl(tmp_path / "x.jsonl", *rows)
    assert failure(source, domain="d") == f"{source}, row 3: id '1' is that of row 1 already"
    assert [row.text for row in load_texts(source, domain="d", skip_bad=True)] == ["a", "b"]


def test_missing_continuation(tmp_path):
    source = jsonl(tmp_path / "x.jsonl", {"text": "a", "m": "b"}, {"text": "a", "m": None})
    message = failure(source, domain="d", candidates={"model": "m"})
    assert message == f"{source}, row 2: column 'm' holds null, not a string"


def test_a_candidate_may_lack_a_text_that_another_has(tmp_path):
    source = jsonl(tmp_path / "x.jsonl", {"text": "a", "m": "b", "n": None}, {"text": "c", "m": None, "n": "d"})
    rows = load_texts(source, domain="d", candidates={"first": "m", "second": "n"})
    assert [row.candidates for row in rows] == [{"first": "b"}, {"second": "d"}]


@pytest.mark.parametrize(
    ("name", "content"),
    # A time stamp in the gzip header would name the test otherwise in each process of a parallel run.
    [("x.jsonl", b""), ("x.jsonl", b"\n \n"), ("x.csv", b"text,domain\n"), ("x.jsonl.gz", gzip.compress(b"", mtime=0))],
)
def test_no_rows(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert failure(tmp_path / name) == f"{tmp_path / name}: there are no rows"


def test_no_rows_in_parquet_and_no_header_in_csv(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    assert "there are no rows" in failure(tmp_path / "x.parquet", domain="d")
    (tmp_path / "x.csv").write_bytes(b"")
    assert "no column 'text'; the columns are none" in failure(tmp_path / "x.csv", domain="d")


def test_all_rows_bad_is_an_error_even_when_they_are_skipped(tmp_path):
    source = texts(tmp_path / "x.jsonl", "", None)
    assert failure(source, skip_bad=True) == f"{source}, row 1: column 'text' is empty (and no row is good)"


@pytest.mark.parametrize("name", ["x.jsonl", "deep/x.csv.gz", "./x", "~/x", "x.parquet"])
def test_missing_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert failure(name) == f"{name}: no such file"
    assert failure(tmp_path / "nothing").endswith("no such file")


def test_unknown_format(tmp_path):
    (tmp_path / "x.docx").write_text("x")
    assert "the format is not known" in failure(tmp_path / "x.docx")


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.csv.gz"])
@pytest.mark.parametrize("damage", ["cut", "no gzip", "flipped"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_damaged_gzip(tmp_path, name, damage, skip_bad):
    lines = "".join(f'{{"text": "text number {n * n}"}}\n' for n in range(5000)).encode()
    rows = b"text\n" + b"".join(b"text number %d\n" % (n * n) for n in range(5000))
    content = gzip.compress(lines if "jsonl" in name else rows)
    half = len(content) // 2
    damaged = {"cut": content[:half], "no gzip": b"text\nx\n", "flipped": content[:half] + b"\xff" * 9 + content[half:]}
    (tmp_path / name).write_bytes(damaged[damage])
    assert "cannot be read: " in failure(tmp_path / name, domain="d", skip_bad=skip_bad)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_damaged_parquet(tmp_path, content):
    (tmp_path / "x.parquet").write_bytes(content)
    assert "cannot be read: " in failure(tmp_path / "x.parquet")


def test_column_name_that_the_data_lack_is_told(tmp_path, caplog):
    source = texts(tmp_path / "x.jsonl", "one")
    assert load_texts(source, prompt_column="question")[0].prompt is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{source}: no column 'question'; continuing without it"
    ]


@settings(deadline=None)  # files take long on a busy machine
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_any_text_survives_every_format(tmp_path_factory, values):
    rows = [{"text": f"x{value}"} for value in values]
    folder = tmp_path_factory.mktemp("round")
    for suffix in (".jsonl", ".csv", ".parquet"):
        loaded = load_texts(write(folder / f"x{suffix}", rows), domain="d")
        assert [row.text for row in loaded] == [row["text"] for row in rows]


def test_folder_of_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"id": n, "domain": "creative", "text": f"text {n}", "m": "x"} for n in range(600)]
    jsonl(folder / "train.jsonl", *rows)
    jsonl(folder / "test.jsonl", rows[0], {**rows[1], "text": " "})
    # `datasets` reads its cache folder from the environment when it is imported, hence a process of its own.
    script = (
        "import sys; from ugap.data import load_texts\n"
        "rows = load_texts(sys.argv[1], candidates={'model': 'm'})\n"
        "print(len(rows), rows[599])\n"
        "for arguments in ({'split': 'test'}, {'split': 'dev'}, {'text_column': 'body'}):\n"
        "    try: load_texts(sys.argv[1], **arguments)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    output = run_script(script, str(folder), {"HF_HOME": str(tmp_path / "home")})
    assert output[0] == f"600 {TextRow('599', 'creative', 'text 599', None, {'model': 'x'}, f'{folder}, row 600')}"
    assert output[1] == f"InputError {folder}, row 2: column 'text' is only whitespace"
    assert output[2].startswith(
        f"InputError {folder}: no such file, and no data set with a split 'dev' can be loaded: "
    )
    assert output[3].startswith(f"InputError {folder}: no column 'body'; the columns are 'id', 'domain', 'text', 'm'")


def test_unknown_hub_id_without_a_network(tmp_path):
    script = (
        "import sys; from ugap.data import load_texts\n"
        "try: load_texts(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    output = run_script(script, "nobody/no-such-set", {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"})
    assert len(output) == 1
    assert output[0].startswith(
        "InputError nobody/no-such-set: no such file, and no data set with a split 'train' can be"
    )


def run_script(script: str, argument: str, environment: dict[str, str]) -> list[str]:
    """Run a script in a process of its own and return the lines of its output."""
    done = subprocess.run(
        [sys.executable, "-c", script, argument],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("column", ["domain", "id"])
def test_a_name_as_long_as_a_text_is_refused(column, tmp_path):
    row = {"id": "a", "domain": "creative", "text": "Once upon a time."}
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({**row, column: "x" * 500}) + "\n")
    assert len(load_texts(str(path))) == 1
    path.write_text(json.dumps({**row, column: "x" * 501}) + "\n")
    with pytest.raises(InputError, match=f"row 1: column '{column}' holds 501 characters, and at most 500 make a name"):
        load_texts(str(path))
