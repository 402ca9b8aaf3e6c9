"""The scored texts of a study, read from Parquet: every damage is one line that names the row or the column."""

import os
import shutil
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ugap.errors import InputError
from ugap.report.page import read_run, runs, write_page
from ugap.report.page.scores import read_scores
from ugap.study.store import SCORED, to_row


@pytest.fixture
def copied(evil_folder, tmp_path):
    return shutil.copytree(evil_folder, tmp_path / "copy")


def rows_of(texts, number, decodings=("human", "ancestral", "top-p-0.9", "temperature-0.7")):
    """Rows of one prefix: a human text and its continuations, all the same scores but for the labels."""
    labels = {"id": f"text {number}", "source": f"source {number // 4}"}
    return [{**to_row(texts[0]), **labels, "decoding": decoding} for decoding in decodings]


def test_they_come_back(evil_folder):
    texts = list(read_scores(evil_folder))
    assert len(texts) == 12 * 3
    rows = pq.read_table(evil_folder / "scores.parquet").to_pylist()
    for text, row in zip(texts, rows, strict=True):
        assert (text.id, text.decoding, text.scores.text) == (row["id"], row["decoding"], row["text"])
        np.testing.assert_array_equal(text.scores.surprisal, np.float32(row["surprisal"]))
        assert text.scores.offsets.shape == (len(row["token_ids"]), 2)


@pytest.mark.parametrize(
    ("column", "values", "line"),
    [
        ("surprisal", None, "no column 'surprisal'"),
        ("surprisal", ["x"], "column 'surprisal' holds string, not list<"),
        ("surprisal", [["x"]], "column 'surprisal' holds list<"),
        ("surprisal", [[1.0]], "1 values of surprisal for "),
        ("surprisal", [None], "surprisal is missing"),
        ("text", [None], "text is missing"),
        ("text", [""], "offsets beyond the text"),
        ("domain", [None], "domain is missing"),
        ("straddles", [None], "straddles is missing"),
        ("offsets", [[0, 1]], "2 offsets for "),
        ("marginal_surprisal", [[]], "0 values of marginal_surprisal for "),
    ],
)
def test_a_damaged_column_is_named(copied, column, values, line):
    path = copied / "scores.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    if values is None:
        table = table.drop_columns([column])
    else:
        own = SCORED.field(column).type
        array = pa.array(values * len(table))
        table = table.set_column(
            place, column, array.cast(own) if array.type != pa.string() and "x" not in str(values) else array
        )
    pq.write_table(table, path)
    with pytest.raises(InputError) as caught:
        list(read_scores(copied))
    assert str(caught.value).startswith(f"{path}: not the scores of a study (")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("surprisal", -1.0, "surprisal holds a value that no model gives"),
        ("surprisal", np.inf, "surprisal holds a value that no model gives"),
        ("varentropy", 3e38, "varentropy holds a value that no model gives"),
        ("rank", 0.0, "rank holds a value that no model gives"),
        ("offsets", -1, "offsets beyond the text"),
        ("offsets", 10**6, "offsets beyond the text"),
        ("offsets", None, "token_ids or offsets hold a null"),
        ("token_ids", None, "token_ids or offsets hold a null"),
    ],
)
def test_a_damaged_value_is_named_by_its_row(copied, column, value, line):
    path = copied / "scores.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[5][column][1] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), path)
    with pytest.raises(InputError, match=line) as caught:
        list(read_scores(copied))
    assert "row 6: " in str(caught.value) or value is None  # a null is seen in all rows that are read together


def test_what_is_not_known_is_nan(copied):
    path = copied / "scores.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["surprisal"][0] = None
    rows[1]["surprisal"][0] = float("nan")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), path)
    texts = list(read_scores(copied))
    assert np.isnan(texts[0].scores.surprisal[0])
    assert np.isnan(texts[1].scores.surprisal[0])


def test_a_pipe_is_not_opened(copied):
    (copied / "scores.parquet").unlink()
    os.mkfifo(copied / "scores.parquet")
    with pytest.raises(InputError, match="a pipe"):
        list(read_scores(copied))
    (copied / "scores.parquet").unlink()
    os.mkfifo(copied / "parts" / "scored" / "a.part.parquet")  # a part that cannot be read is not done
    assert len(list(read_scores(copied))) == 12 * 3


@pytest.mark.slow
def test_a_page_of_thousands_of_texts_that_still_runs(evil_folder, tmp_path):
    """Two domains, two models, 4,000 texts of 128 tokens, no `gap.json`."""
    rng = np.random.default_rng(0)
    parts = tmp_path / "study" / "parts" / "scored"
    parts.mkdir(parents=True)
    (parts / "settings.json").write_text('{"seed": 0, "stages": {"a": "base", "b": "instruct"}}')
    (text, *_), n = list(read_scores(evil_folder)), 128
    offsets = np.stack([np.arange(n), np.arange(1, n + 1)], 1).astype(np.int32)
    for number, (model, domain) in enumerate([(m, d) for m in "ab" for d in ("creative", "functional")]):
        rows = []
        for i in range(250):
            for row in rows_of([text], i):
                s = rng.gamma(2, 1.5, n).astype(np.float32)
                figures = {"surprisal": s, "entropy": s, "varentropy": s, "rank": s + 1, "marginal_surprisal": s}
                names = {"model": model, "scorer": model, "domain": domain, "source": f"{domain} {row['source']}"}
                ids = {
                    "id": f"{domain} {i}",
                    "text": "w" * n,
                    "token_ids": np.arange(n),
                    "offsets": offsets.reshape(-1),
                }
                rows.append({**row, **names, **ids, **figures})
        pq.write_table(pa.Table.from_pylist(rows, schema=SCORED), parts / f"{number}.part.parquet")
    begin = time.process_time()
    (run,) = write_page([tmp_path / "study"], tmp_path / "page.html")
    assert time.process_time() - begin < 15  # of one processor; 5 where it is not shared, 23 with 10,000 resamples
    assert run.unfinished
    assert len(run.texts) == 4000
    assert len(run.contrasts) == 48


def test_a_study_without_a_record_is_estimated_with_few_resamples(copied, monkeypatch):
    asked: list[int] = []

    def table(*_, seed, resamples):
        asked.append(resamples)
        return []

    monkeypatch.setattr(runs, "gap_table", table)
    monkeypatch.setattr(runs, "contrast_table", table)
    (copied / "gap.json").unlink()
    assert read_run(copied).unfinished
    assert asked == [1000, 1000]
