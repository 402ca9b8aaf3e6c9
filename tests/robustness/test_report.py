"""`ugap report` on folders of studies that are damaged a little: a page, or one line that says what is wrong."""

import json
import random
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.robustness.mutation import mutated_bytes, mutated_json
from ugap.data import TextRow
from ugap.errors import InputError
from ugap.report import write_report
from ugap.report.page import write_page
from ugap.study import StudySettings, parse_decodings, run_study

pytestmark = pytest.mark.slow

ROUNDS = 60
MOST_SECONDS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text_rows, tiny_folder):
    """A finished study with contrasts, in two domains."""
    settings = StudySettings(
        models=[str(tiny_folder)],
        decodings=parse_decodings(["ancestral", "greedy"]),
        prefix_tokens=8,
        max_new_tokens=12,
        per_text=1,
    )
    folder = tmp_path_factory.mktemp("studies") / "study"
    result = run_study([TextRow(**row) for row in text_rows], settings, folder, data=["mine"])
    assert result.record["contrasts"]
    write_report(result, folder, command="ugap measure --data mine")
    return folder


def damage_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(mutated_bytes(path.read_bytes(), rng))


def damage_json(path: Path, rng: random.Random) -> None:
    path.write_text(json.dumps(mutated_json(json.loads(path.read_text(encoding="utf-8")), rng)), encoding="utf-8")


def damage_table(path: Path, rng: random.Random) -> None:
    """Drop a column, give it another type, or put an odd value into one of its rows."""
    table = pq.read_table(path)
    place = rng.randrange(table.num_columns)
    name, column = table.column_names[place], table.column(place)
    kind = rng.randrange(5)
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        odd = rng.choice([pa.nulls(len(column)), pa.array(["x"] * len(column)), pa.array([[["x"]]] * len(column))])
        table = table.set_column(place, name, odd)
    else:
        rows = column.to_pylist()
        at = rng.randrange(len(rows))
        if isinstance(rows[at], list) and rows[at] and kind > 2:
            floats = [None, 0.0, -1.0, 3e38, np.nan, np.inf, -np.inf]
            values = floats if pa.types.is_floating(column.type.value_type) else [None, 0, -1, 2**31 - 1, -(2**31)]
            rows[at][rng.randrange(len(rows[at]))] = rng.choice(values)
        else:
            rows[at] = rng.choice([None, [] if isinstance(rows[at], list) else rows[at - 1]])
        table = table.set_column(place, name, pa.array(rows, type=column.type))
    pq.write_table(table, path)


CASES = {
    "gap.json, values": ("gap.json", damage_json),
    "gap.json, bytes": ("gap.json", damage_bytes),
    "gap.md": ("gap.md", damage_bytes),
    "scores, bytes": ("scores.parquet", damage_bytes),
    "scores, columns": ("scores.parquet", damage_table),
    "settings of the parts": ("parts/scored/settings.json", damage_json),
    "a part, bytes": ("parts/scored/*.part.parquet", damage_bytes),
    "a part, columns": ("parts/scored/*.part.parquet", damage_table),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_or_one_line(folder, tmp_path, case):
    pattern, damage = CASES[case]
    copy, page = tmp_path / "study", tmp_path / "page.html"
    shutil.copytree(folder, copy)
    if pattern.startswith("parts"):  # they are read where the study has not ended
        (copy / "gap.json").unlink()
        (copy / "scores.parquet").unlink()
    (path, *_) = sorted(copy.glob(pattern))
    whole = path.read_bytes()
    write_page([copy], page)  # undamaged, so that the lines below are about the damage
    lines = []
    for seed in range(ROUNDS):
        path.write_bytes(whole)
        damage(path, random.Random(seed))
        begin = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                write_page([copy], page)
        except InputError as error:
            lines.append(str(error))
        except BaseException as error:
            raise AssertionError(f"{case}, seed {seed}") from error
        else:
            page.read_text(encoding="utf-8")
        assert time.monotonic() - begin < MOST_SECONDS, seed
    for line in lines:
        assert line.startswith(str(copy))
        assert "\n" not in line
        assert len(line) < 500
