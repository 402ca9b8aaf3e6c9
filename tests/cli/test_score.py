"""`ugap score`."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import ugap.study.scoring_job
from ugap.cli.main import main
from ugap.files import locked
from ugap.scoring import Scorer

ROOT = Path(__file__).parents[2]
FLOATS = ("surprisal", "entropy", "varentropy", "rank")
SHORT_STUDY = ("--prefix_tokens", "8", "--max_new_tokens", "10", "--decoding", "ancestral", "--limit", "2", "--no_pmi")


@pytest.fixture
def scored(tmp_path, tiny_folder):
    """`scored(source, *options)`: the rows that `ugap score` writes."""
    number = 0

    def run(source: str, *options: str) -> list[dict]:
        nonlocal number
        number += 1
        output = tmp_path / f"scores-{number}.parquet"
        words = ["score", "--model", str(tiny_folder), "--input", source, "--output", str(output), *options]
        assert main(words) == 0
        assert not output.with_name(output.name + ".parts").exists()
        return pq.read_table(output).to_pylist()

    return run


def assert_scores(row: dict, scores) -> None:
    assert row["text"] == scores.text
    assert row["token_ids"] == scores.token_ids.tolist()
    assert row["offsets"] == scores.offsets.reshape(-1).tolist()
    assert row["straddles"] == scores.straddles
    for name in FLOATS:
        assert np.array_equal(np.float32(row[name]), getattr(scores, name), equal_nan=True)


def test_score_writes_what_the_scorer_says(scored, write_rows, text_rows, tiny_folder, capsys):
    rows = scored(write_rows(text_rows))
    assert list(rows[0]) == [
        *("id", "text", "token_ids", "offsets", "surprisal", "entropy", "varentropy", "rank", "straddles")
    ]
    assert [row["id"] for row in rows] == [row["id"] for row in text_rows]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    for row, scores in zip(rows, scorer.score([row["text"] for row in text_rows]), strict=True):
        assert_scores(row, scores)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "12 texts scored" in printed.out


def test_score_after_a_prompt_and_without_it(scored, write_rows, text_rows, tiny_folder):
    prompts = ["Tell me of the tailor. ", "", None, "Once"]
    given = [{**row, "prompt": prompt} for row, prompt in zip(text_rows, prompts, strict=False)]
    rows = scored(write_rows(given), "--pmi")
    assert list(rows[0]) == [
        *("id", "text", "token_ids", "offsets", "surprisal", "entropy", "varentropy", "rank", "marginal_surprisal"),
        "straddles",
    ]
    texts = [row["text"] for row in given]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    after = scorer.score(texts, [prompt or "" for prompt in prompts], pmi=True)
    for row, scores in zip(rows, after, strict=True):
        assert_scores(row, scores)
        marginal = scores.marginal_surprisal
        assert row["marginal_surprisal"] == (None if marginal is None else marginal.tolist())
    assert rows[0]["surprisal"] != rows[0]["marginal_surprisal"]
    assert rows[1]["marginal_surprisal"] is None  # without a prompt there is none to leave out
    other = scored(write_rows([{"id": r["id"], "text": r["text"], "before": r["prompt"]} for r in given], "b.jsonl"))
    assert other[0]["surprisal"] != rows[0]["surprisal"]
    assert "marginal_surprisal" not in other[0]
    named = scored(str(Path(write_rows([])).with_name("b.jsonl")), "--prompt_column", "before")
    assert named[0]["surprisal"] == rows[0]["surprisal"]


def test_score_reads_a_compressed_file(scored, write_rows, text_rows, tmp_path):
    plain = write_rows(text_rows)
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert scored(str(packed)) == scored(plain)


def test_score_stops_at_the_limit(scored, write_rows, text_rows):
    rows = scored(write_rows(text_rows), "--limit", "3")
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]


def test_score_gives_row_numbers_and_takes_other_columns(scored, write_rows, text_rows):
    rows = scored(write_rows([{"body": row["text"]} for row in text_rows[:2]]), "--text_column", "body")
    assert [row["id"] for row in rows] == ["1", "2"]


def test_special_tokens_are_characters_unless_asked(scored, write_rows, tokenizer):
    path = write_rows([{"text": "Once upon <eos> a time"}])
    assert tokenizer.eos_token_id not in scored(path)[0]["token_ids"]
    assert tokenizer.eos_token_id in scored(path, "--special_tokens")[0]["token_ids"]


def test_score_skips_what_is_bad_where_asked(write_rows, text_rows, tmp_path, broken_folder, caplog, capsys):
    rows = [text_rows[0], {"id": "empty", "text": ""}, {"id": "one", "text": "a"}, {"id": "odd", "text": "A Q is odd."}]
    output = tmp_path / "out.parquet"
    path = write_rows([*rows, text_rows[1]])
    words = ["score", "--model", str(broken_folder), "--input", path, "--output", str(output), "--skip_bad"]
    assert main(words) == 0
    assert pq.read_table(output)["id"].to_pylist() == ["c0", "c1"]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 3
    for message, cause in zip(
        logged, ("row 2: column 'text' is empty", "'one': .*single token", "'odd': .*finite"), strict=True
    ):
        assert re.search(f"{re.escape(path)}.*{cause}", message)
    assert "2 texts scored" in capsys.readouterr().out


def test_score_goes_on_where_it_stopped(write_rows, text_rows, tmp_path, broken_folder, refused, seen, monkeypatch):
    monkeypatch.setattr(ugap.study.scoring_job, "TEXTS_PER_PART", 2)
    rows = text_rows[:7]
    path = write_rows([*rows[:5], {"id": "odd", "text": "A Q is odd."}, *rows[5:]])
    output = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    words = ["score", "--model", str(broken_folder), "--input", path, "--output", str(output)]

    line = refused(*words)
    assert line.startswith(
        f"ugap: error: {path}, row 6, text 'odd': the logits of {broken_folder} are not finite at token "
    )
    assert not output.exists()
    assert len(list(parts.glob("*.parquet"))) == 2
    assert "add --resume" in refused(*words)
    assert "'pmi' was false and is true now" in refused(*words, "--resume", "--pmi")
    assert '\'text_column\' was "text" and is "id" now' in refused(*words, "--resume", "--text_column", "id")

    write_rows([*rows[:5], {"id": "even", "text": "A zero is even."}, *rows[5:]])
    seen.clear()
    assert main([*words, "--resume"]) == 0
    assert not parts.exists()
    assert seen == [rows[4]["text"], "A zero is even.", rows[5]["text"], rows[6]["text"]]
    resumed = pq.read_table(output)
    assert main(words) == 0
    assert pq.read_table(output).equals(resumed)


def test_an_edited_file_is_scored_as_it_is(write_rows, text_rows, tmp_path, broken_folder, refused, seen, monkeypatch):
    """A part that was finished before is that of its texts, whatever the file is called."""
    monkeypatch.setattr(ugap.study.scoring_job, "TEXTS_PER_PART", 2)
    output = tmp_path / "out.parquet"
    bad = {"id": "odd", "text": "A Q is odd."}
    words = ["score", "--model", str(broken_folder), "--input", write_rows([*text_rows[:6], bad])]
    refused(*words, "--output", str(output))
    write_rows([text_rows[0], text_rows[9], *text_rows[2:6]])
    seen.clear()
    assert main([*words, "--output", str(output), "--resume"]) == 0
    assert seen == [text_rows[0]["text"], text_rows[9]["text"]]
    assert main([*words, "--output", str(tmp_path / "fresh.parquet")]) == 0
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "fresh.parquet"))


@pytest.mark.parametrize("words", [["score", "--input"], ["profile", "--domain", "creative", "--data"]])
def test_a_second_process_is_refused(write_rows, text_rows, tmp_path, tiny_folder, refused, words):
    output = tmp_path / "out.parquet"
    with locked(output):
        line = refused(*words, write_rows(text_rows), "--model", str(tiny_folder), "--output", str(output))
    assert line == f"ugap: error: {output}: another process is writing there; wait, or choose another output\n"


def test_what_fails_at_once_leaves_nothing_behind(write_rows, tmp_path, tiny_folder, refused, text_rows):
    words = ["score", "--model", str(tiny_folder), "--output", str(tmp_path / "out.parquet"), "--input"]
    refused(*words, write_rows([{"id": "one", "text": "a"}]))
    assert main([*words, write_rows(text_rows)]) == 0

    words = ["measure", "--data", write_rows(text_rows), "--output", str(tmp_path / "study"), *SHORT_STUDY, "--model"]
    refused(*words, str(tmp_path / "no-such-model"))
    assert main([*words, str(tiny_folder)]) == 0


@pytest.mark.slow
def test_two_processes_write_the_same_file(write_rows, text_rows, tmp_path, tiny_folder, monkeypatch):
    rows = [{"id": f"{row['id']}-{k}", "text": row["text"][k:]} for k in range(12) for row in text_rows]
    path = write_rows(rows)
    words = ["score", "--model", str(tiny_folder), "--input", path, "--output"]
    # Without GPUs, `--multi_gpu` is how accelerate starts several processes without MPI.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["-m", "ugap.cli.main"]
    together = tmp_path / "together.parquet"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *words, str(together)], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("texts scored by") == 1
    assert not together.with_name("together.parquet.parts").exists()
    assert main([*words, str(tmp_path / "alone.parquet")]) == 0
    alone = pq.read_table(tmp_path / "alone.parquet")
    assert alone.num_rows == 144
    assert pq.read_table(together).equals(alone)
