"""`ugap study`: the files of a whole study, its shards, and bad input."""

import json

import pytest
import yaml

from ugap.cli.main import main

SHORT = {"prefix_tokens": 8, "max_new_tokens": 16, "limit": 6, "per_text": 1}


@pytest.fixture
def config(tmp_path, tiny_folder, chat_folder, text_rows, write_rows):
    """`config(**changes)`: a YAML file of a base, an instruct and an absent model."""
    models = [
        {"name": str(tiny_folder), "label": "tiny", "family": "tiny", "stage": "base"},
        {"name": str(chat_folder), "label": "tiny|chat", "family": "tiny", "stage": "instruct", "chat": "both"},
        {"name": "./nowhere", "family": "other", "stage": "reasoning"},
    ]
    data = write_rows(text_rows)

    def write(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump({"models": models, "data": [data], **SHORT, **changes}))
        return ["study", "--config", str(path), "--output", str(tmp_path / "out")]

    return write


def test_a_dry_run_plans_the_models_of_a_shard(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*config(), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "./nowhere: would be skipped: ./nowhere: neither a folder" in printed
    assert printed.count(" writes ") == printed.count(" read by itself ") == 2
    assert main([*config(), "--dry_run", "--shard", "0/3"]) == 0
    printed = capsys.readouterr().out
    assert "nowhere" not in printed
    assert printed.count(" writes ") == 1
    assert not (tmp_path / "out").exists()


def test_a_whole_study(config, tmp_path, capsys):
    assert main(config()) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "tiny: done" in printed.out
    assert "./nowhere: skipped: ./nowhere: neither a folder" in printed.out
    assert "- 2 of 3 models could be measured." in printed.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("models", "study.json", "contrasts.json", "study.md", "models.png", "report.html")
    }
    record = json.loads((tmp_path / "out" / "contrasts.json").read_text())
    assert [(model["label"], model["status"]) for model in record["models"]] == [
        ("tiny", "finished"),
        ("tiny|chat", "finished"),
        ("./nowhere", "skipped"),
    ]
    stages = {(row["domain"], row["prompting_a"]) for row in record["contrasts"] if row["contrast"] == "stage"}
    assert stages == {(domain, how) for domain in ("creative", "functional") for how in ("raw", "chat")}
    assert sum(row["contrast"] == "domain" and row["measure"] == "nll" for row in record["contrasts"]) == 3
    table = (tmp_path / "out" / "study.md").read_text()
    assert "| tiny\\|chat (instruct, chat) | tiny (base, raw) |" in table
    assert "skipped: ./nowhere: neither a folder" in table
    assert (tmp_path / "out" / "models.png").read_bytes().startswith(b"\x89PNG")

    assert main([*config(), "--resume"]) == 0
    assert "tiny: finished before" in capsys.readouterr().out
    again = json.loads((tmp_path / "out" / "contrasts.json").read_text())
    assert again["contrasts"] == record["contrasts"]


@pytest.mark.slow
def test_the_shard_that_ends_last_makes_the_contrasts(config, tmp_path, capsys):
    assert main([*config(), "--shard", "0/2"]) == 0
    assert "still to be run, by other shards: tiny|chat" in capsys.readouterr().out
    assert not (tmp_path / "out" / "contrasts.json").exists()
    assert main([*config(), "--shard", "1/2"]) == 0
    assert (tmp_path / "out" / "contrasts.json").exists()


def test_a_process_of_a_launcher_takes_its_shard(config, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(config()) == 0
    out = capsys.readouterr().out
    assert "tiny|chat: done" in out
    assert "tiny: done" not in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modls": []}, "unknown option 'modls'; did you mean models?"),
        ({"models": None}, "models: a list of models is needed"),
        ({"models": "gemma-3-270m"}, "models: a list of models is needed"),
        (
            {"models": [{"name": "m", "family": "f", "stage": "chat"}]},
            "stage 'chat' is none of base, instruct, reasoning",
        ),
        ({"models": [{"name": "m", "family": "f", "stage": "base", "size": 1}]}, "unknown key 'size'"),
        ({"decoding": ["ancestrl"]}, "unknown decoding 'ancestrl'"),
        ({"data": ["none.jsonl"]}, "none.jsonl: no such file"),
        ({"shard": "2/2"}, "--shard 2/2: give I/N"),
        ({"shard": "one"}, "--shard one: give I/N"),
        ({"lock": "none.yaml"}, "none.yaml: cannot be read as a lock"),
        ({"limit": "few"}, "limit: 'few' is not a whole number"),
    ],
)
def test_bad_input(config, refused, tmp_path, changes, message):
    assert message in refused(*config(**changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_study_that_is_there_already(config, refused, caplog):
    assert main(config()) == 0
    caplog.clear()  # of texts that a tiny model left empty
    assert "there are results already; add --resume" in refused(*config())
    assert "has seed 0, not 3" in refused(*config(seed=3), "--resume")
