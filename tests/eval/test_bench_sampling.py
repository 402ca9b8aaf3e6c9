"""The benchmark of the samplers runs whole on a tiny model, and says which numbers are whose."""

import json

import pytest

from ugap.cli.main import main
from ugap.models import load_model
from ugap.profile import HumanProfile


@pytest.fixture
def words(tiny_folder, make_profile, monkeypatch):
    profile = make_profile(load_model(str(tiny_folder))[0])
    monkeypatch.setattr(HumanProfile, "shipped_for", classmethod(lambda cls, scorer: profile))
    sizes = ["--batch_size", "3", "--step_batch_size", "2", "--new_tokens", "4", "--repeats", "2"]
    return ["eval", "bench_sampling", "--model", str(tiny_folder), *sizes]


def test_all_variants_are_timed(words, tmp_path, capsys):
    output = tmp_path / "times.json"
    assert main([*words, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert list(record["tokens_per_second"]) == ["stock", "draw", "ugap", "ugap-scores", "greedy"]
    assert set(record["step_seconds"]) == {"model", "ugap", "ugap-scores", "softmax and multinomial"}
    assert all(value > 0 for part in ("tokens_per_second", "step_seconds") for value in record[part].values())
    assert record["settings"]["environment"]["threads"] >= 1
    printed = capsys.readouterr().out
    assert "3 sequences of 4 tokens" in printed
    assert "one step of 2 sequences" in printed


def test_bad_input(words, capsys):
    assert main([*words, "--repeats", "0"]) == 2
    assert "repeats: expected a positive number, got 0" in capsys.readouterr().err
