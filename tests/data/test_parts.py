"""`PartStore`: whole or absent, at whatever instant the process dies."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ugap.data.parts import PartStore
from ugap.errors import InputError

SCHEMA = pa.schema({"name": pa.string(), "n": pa.int64(), "values": pa.list_(pa.float32())})
SETTINGS = {"seed": 0, "models": ["a", "b"], "limit": None}


def rows_of(key: str, count: int = 3) -> list[dict]:
    return [{"name": key, "n": n, "values": [n / 2, -1.0]} for n in range(count)]


@pytest.fixture
def store(tmp_path) -> PartStore:
    return PartStore(tmp_path / "job" / "parts", SCHEMA, SETTINGS)


def part_files(store: PartStore) -> list[Path]:
    return sorted(store.folder.glob("*.part.parquet"))


def test_write_and_read(store):
    assert not store.done("k")
    store.write("k", rows_of("k"))
    assert store.done("k")
    assert store.read("k") == rows_of("k")
    store.write("k", rows_of("other"))
    assert store.read("k") == rows_of("other")
    assert len(part_files(store)) == 1


def test_arrays_nulls_and_no_rows(store):
    values = np.array([0.1, np.nan, np.inf], dtype=np.float32)
    store.write("array", [{"name": None, "n": 1, "values": values}, {"name": "x", "n": 2, "values": None}])
    first, second = store.read("array")
    np.testing.assert_array_equal(np.float32(first["values"]), values)
    assert (first["name"], second["values"]) == (None, None)
    store.write("empty", [])
    assert store.done("empty")
    assert store.read("empty") == []


def test_a_row_must_have_the_columns_of_the_schema(store):
    for row, column in (({"name": "a", "n": 1}, "values"), ({**rows_of("a")[0], "more": 1}, "more")):
        with pytest.raises(ValueError, match=column):
            store.write("k", [row])
    assert not store.done("k")


def test_every_key_has_a_file_of_its_own(store):
    keys = ["a/b", "a b", "a-b", "A/B", "", ".", "..", "../a", "a\0", "ü", "u\u0308", "x" * 1000, "x" * 1001, "CON"]
    for key in keys:
        store.write(key, [{"name": key, "n": 0, "values": []}])
    assert [store.read(key)[0]["name"] for key in keys] == keys
    names = {path.name for path in part_files(store)}
    assert len(names) == len(keys)
    assert all(name.isascii() and name == name.lower() and len(name) < 120 for name in names)
    assert {path.name for path in store.folder.iterdir()} == names | {"settings.json"}


def test_damaged_part_is_not_done(store):
    store.write("k", rows_of("k", 50))
    (file,) = part_files(store)
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert not store.done("k")
        file.write_bytes(whole[:length] + bytes(len(whole) - length))  # as a file system may leave it after a crash
        assert not store.done("k")
    with pytest.raises(KeyError, match="'k'"):
        store.read("k")
    store.write("k", rows_of("k", 50))
    assert store.read("k") == rows_of("k", 50)


def test_flipped_byte_is_found_or_harmless(store):
    store.write("k", rows_of("k", 20))
    (file,) = part_files(store)
    whole = file.read_bytes()
    found = 0
    for position in range(0, len(whole), 5):
        for value in {0, 255, whole[position] ^ 1} - {whole[position]}:
            file.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            if store.done("k"):
                assert store.read("k") == rows_of("k", 20)
            else:
                found += 1
    assert found > len(whole) / 5


def test_part_of_another_key_or_schema_is_not_done(store, tmp_path):
    store.write("a", rows_of("a"))
    store.write("b", rows_of("b"))
    first, second = part_files(store)
    first.write_bytes(second.read_bytes())
    assert [store.done("a"), store.done("b")] == [False, True]
    wider = PartStore(store.folder, SCHEMA.append(pa.field("more", pa.int8())), SETTINGS)
    assert not wider.done("b")


def test_merge_keeps_the_order_of_the_keys(store, tmp_path):
    keys = [f"key {n}" for n in range(20)]
    for key in keys:
        store.write(key, rows_of(key, count=len(key)))
    order = keys[::-1]
    store.merge(tmp_path / "out" / "all.parquet", order)
    table = pq.read_table(tmp_path / "out" / "all.parquet")
    assert table.to_pylist() == [row for key in order for row in rows_of(key, count=len(key))]
    assert table.schema.equals(SCHEMA)
    assert table.schema.metadata is None
    assert pq.ParquetFile(tmp_path / "out" / "all.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all.parquet"]


def test_merge_of_nothing_and_of_a_missing_part(store, tmp_path):
    store.merge(tmp_path / "all.parquet", [])
    assert pq.read_table(tmp_path / "all.parquet").schema.equals(SCHEMA)
    store.write("a", rows_of("a"))
    with pytest.raises(KeyError, match="'b'"):
        store.merge(tmp_path / "all.parquet", ["a", "b"])
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.parquet", "job"]


def test_merge_holds_a_few_parts_at_a_time(tmp_path):
    schema = pa.schema({"x": pa.list_(pa.float64())})
    store = PartStore(tmp_path / "parts", schema, {})
    values = np.random.default_rng(0).normal(size=2**17)  # 1 MiB
    keys = [str(n) for n in range(40)]
    for key in keys:
        store.write(key, [{"x": values + int(key)}])
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    highest = 0
    read = store._finished

    def watched(key: str) -> pa.Table:
        nonlocal highest
        highest = max(highest, pool.bytes_allocated() - before)
        return read(key)

    store._finished = watched  # type: ignore[method-assign]
    store.merge(tmp_path / "all.parquet", keys)
    assert highest < 20 * 2**20
    merged = pq.ParquetFile(tmp_path / "all.parquet")
    assert merged.metadata.num_rows == 40
    assert 4 <= merged.metadata.num_row_groups <= 6


def test_same_settings_go_on(store):
    store.write("a", rows_of("a"))
    again = PartStore(str(store.folder), SCHEMA, {"limit": None, "models": ("a", "b"), "seed": 0})
    assert again.done("a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**SETTINGS, "seed": 1}, "the setting 'seed' was 0 and is 1 now"),
        ({**SETTINGS, "models": ["a"], "limit": 1}, 'the setting \'models\' was ["a", "b"] and is ["a"] now'),
        ({**SETTINGS, "seed": False}, "the setting 'seed' was 0 and is false now"),
        ({"seed": 0, "models": ["a", "b"]}, "the setting 'limit' was null and is absent now"),
        ({**SETTINGS, "new": "ä"}, "the setting 'new' was absent and is \"ä\" now"),
    ],
)
def test_other_settings_are_refused(store, settings, message):
    store.write("a", rows_of("a"))
    with pytest.raises(InputError) as raised:
        PartStore(store.folder, SCHEMA, settings)
    assert message in str(raised.value)
    assert str(store.folder) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert PartStore(store.folder, SCHEMA, SETTINGS).done("a")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"])
def test_damaged_settings_are_refused(store, content):
    (store.folder / "settings.json").write_bytes(content)
    with pytest.raises(InputError, match=r"settings\.json"):
        PartStore(store.folder, SCHEMA, SETTINGS)


def test_parts_without_settings_are_refused(store):
    store.write("a", rows_of("a"))
    (store.folder / "settings.json").unlink()
    with pytest.raises(InputError, match=r"no settings\.json"):
        PartStore(store.folder, SCHEMA, SETTINGS)


def test_clear(store):
    store.write("a", rows_of("a"))
    (store.folder / ".0123.a.part.parquet").write_bytes(b"left by a kill")
    (store.folder / ".0123.settings.json").write_bytes(b"left by a kill")
    store.clear()
    assert not store.folder.exists()
    PartStore(store.folder, SCHEMA, {"other": 1})


JOB = """
import sys
from pathlib import Path
import pyarrow as pa
from ugap.data.parts import PartStore

folder, count, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
schema = pa.schema({"key": pa.string(), "values": pa.list_(pa.int64())})
store = PartStore(folder / "parts", schema, {"count": count})
keys = [f"unit {n}" for n in range(count)]
for n, key in enumerate(keys):
    if not store.done(key):
        store.write(key, [{"key": key, "values": list(range(n, n + size))}])
        print(key, flush=True)
print("merging", flush=True)
store.merge(folder / "all.parquet", keys)
print("merged", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    """A job killed again and again, in its units and in its merge, ends with the table of one that ran through."""
    rng = random.Random(0)
    count, size = 120, 20_000
    schema = pa.schema({"key": pa.string(), "values": pa.list_(pa.int64())})
    reported: list[str] = []
    kills = {"unit": 4, "merge": 2}  # still to come
    while "merged" not in reported:
        job = subprocess.Popen(
            [sys.executable, "-c", JOB, str(tmp_path), str(count), str(size)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        assert job.stdout is not None
        stage = next((stage for stage, left in kills.items() if left), "")
        if stage:
            kills[stage] -= 1
            units = rng.randint(1, 12) if stage == "unit" else count
            for line in itertools.islice(job.stdout, units):
                reported.append(line.strip())
                if reported[-1] == "merging":
                    break
            time.sleep(rng.uniform(0.0, 0.02))
            job.kill()
        reported += job.stdout.read().splitlines()
        job.stdout.close()
        assert job.wait() in (0, -signal.SIGKILL)

        store = PartStore(tmp_path / "parts", schema, {"count": count})
        finished = [line for line in reported if line.startswith("unit")]
        assert all(store.done(key) for key in finished)
        assert len(finished) == len(set(finished))  # no finished unit is made again
        for path in part_files(store):
            if not path.name.startswith("."):
                assert pq.ParquetFile(path).metadata.num_rows == 1
        if (tmp_path / "all.parquet").exists():
            assert pq.read_table(tmp_path / "all.parquet").num_rows == count

    assert pq.read_table(tmp_path / "all.parquet").to_pylist() == [
        {"key": f"unit {n}", "values": list(range(n, n + size))} for n in range(count)
    ]
