"""The benchmark of the rewards runs whole on a tiny model, each variant in a process of its own."""

import json

import pytest

from ugap.cli.main import main
from ugap.models import load_model


@pytest.fixture
def words(tiny_folder, make_profile, text_rows, write_rows, tmp_path):
    profile = tmp_path / "profile.json"
    make_profile(load_model(str(tiny_folder))[0], n_texts=20).save(profile)
    rows = write_rows([row for row in text_rows if row["domain"] == "creative"])
    sizes = ["--steps", "2", "--num_generations", "2", "--batch_size", "2", "--new_tokens", "4"]
    return ["eval", "bench_training", "--model", str(tiny_folder), "--profile", str(profile), "--data", rows, *sizes]


@pytest.mark.slow
def test_all_variants_are_measured(words, tmp_path, capsys):
    output = tmp_path / "bench.json"
    assert main([*words, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert list(record["variants"]) == ["trivial", "shared", "separate"]
    for one in record["variants"].values():
        assert one["peak_bytes"] > 1e8
        assert one["step_seconds"] > 0
    assert "of trivial" in capsys.readouterr().out


def test_one_variant(words, capsys):
    assert main([*words, "--variant", "shared"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step_seconds"] > 0


def test_bad_input(words, refused):
    assert "steps: expected a positive number, got 0" in refused(*words, "--steps", "0")
