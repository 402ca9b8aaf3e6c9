"""`--dry_run`: the steps of a study are those that it takes."""

import json
import math
import re

import pyarrow.parquet as pq
import pytest

from ugap.cli.main import main
from ugap.data import load_texts
from ugap.errors import InputError
from ugap.study import StudySettings
from ugap.study.gap.plan import plan_study

NEW = 16


@pytest.fixture
def words(tmp_path, text_rows):
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in text_rows), encoding="utf-8")
    options = ["--prefix_tokens", "8", "--max_new_tokens", str(NEW), "--limit", "3", "--batch_size", "2"]
    return ["measure", "--data", str(data), "--output", str(tmp_path / "out"), *options]


def planned(text: str) -> dict[str, tuple[int, int, str]]:
    """Texts, tokens and time of each step."""
    steps = re.findall(r"^(\S.*?) {2,}([\d,]+) {2,}([\d,]+) {2,}(\S.*)$", text, re.MULTILINE)
    return {name: (int(n.replace(",", "")), int(tokens.replace(",", "")), time) for name, n, tokens, time in steps}


def test_the_texts_are_those_that_are_written_and_read(words, tiny_folder, chat_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("ugap.report.write_report", lambda *args, **kwargs: None)
    monkeypatch.setattr("ugap.report.page.write_page", lambda *args, **kwargs: None)
    models = [str(tiny_folder), str(chat_folder)]
    words += ["--model", *models, "--scorer", "self", models[0], "--decoding", "ancestral", "greedy"]
    assert main([*words, "--dry_run"]) == 0
    assert not (tmp_path / "out").exists()
    steps = planned(capsys.readouterr().out)
    assert main(words) == 0
    texts = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    for writer in models:
        n_written = sum(text["model"] == text["scorer"] == writer and text["decoding"] != "human" for text in texts)
        assert steps[f"{writer} writes"][:2] == (n_written, n_written * NEW)
        for scorer in {writer, models[0]}:
            n_read = sum(text["model"] == writer and text["scorer"] == scorer for text in texts)
            by = "itself" if scorer == writer else scorer
            assert steps[f"{writer} read by {by}"][:2] == (n_read, n_read * NEW)
    total = steps.pop("in all")
    assert len(steps) == 5
    assert total[0] == sum(n_texts for n_texts, _, _ in steps.values())
    assert total[1] == sum(n_tokens for _, n_tokens, _ in steps.values())
    assert re.fullmatch(r"\d:\d\d:\d\d", total[2])


def test_given_texts_are_read_by_a_fixed_scorer(write_rows, text_rows, tiny_folder):
    data = write_rows([{**row, "prompt": "Write.", "given": row["text"]} for row in text_rows])
    rows = load_texts(data, candidates={"given": "given"})
    (step,) = plan_study(
        rows, StudySettings(models=[], scorers=[str(tiny_folder)], prefix_tokens=8, max_new_tokens=NEW)
    )
    assert step.name == f"given texts read by {tiny_folder}"
    assert step.n_texts == 2 * len(rows)
    assert math.isfinite(step.seconds)


def test_what_cannot_be_run_is_refused(words, refused, tiny_folder):
    assert "nowhere/: neither a folder" in refused(*words, "--model", "nowhere/", "--dry_run")
    assert "at least 8 is needed" in refused(*words, "--model", str(tiny_folder), "--max_new_tokens", "4", "--dry_run")
    with pytest.raises(InputError, match="there is nobody to score"):
        plan_study([], StudySettings(models=[], scorers=[]))
