"""`ugap demo`, and the configs that go with the commands."""

import dataclasses
import json
import re

import pytest

import ugap.cli.demo
import ugap.data.texts
from ugap.cli import measure, profile, score, study, train
from ugap.cli.arguments import parse
from ugap.cli.main import main
from ugap.cli.programs import configs_folder, load_program, programs_folder
from ugap.profile import HumanProfile


def test_demo(tiny_folder, chat_folder, text_rows, tiny_model, make_profile, monkeypatch, tmp_path, capsys):
    models = {str(tiny_folder): "base", str(chat_folder): "instruct"}
    profile = make_profile(tiny_model)
    shipped = classmethod(lambda cls, scorer: dataclasses.replace(profile, weight_hash=scorer.weight_hash))
    monkeypatch.setattr(HumanProfile, "find_shipped", shipped)
    monkeypatch.setattr(ugap.cli.demo, "MODELS", models)
    monkeypatch.setattr(ugap.data.texts, "read_demo", lambda required: iter(text_rows))
    folder = tmp_path / "demo"
    assert main(["demo", "--output", str(folder), "--limit", "3", "--max_new_tokens", "16"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"plots and per-token scores are in {folder}" in " ".join(printed.out.split())
    assert printed.out.endswith(f"open {folder / 'report.html'} in a browser\n")
    record = json.loads((folder / "gap.json").read_text())
    assert record["settings"]["stages"] == models
    assert {(row["domain"], row["model"], row["decoding"], row["n"] + row["n_dropped"]) for row in record["gaps"]} == {
        (domain, model, decoding, 3)
        for domain in ("creative", "functional")
        for model in models
        for decoding in ugap.cli.demo.DECODINGS
    }
    assert {row["contrast"] for row in record["contrasts"]} == {"domain", "stage"}
    assert {path.name for path in folder.iterdir()} == {
        *("gap.json", "gap.csv", "gap.md", "scores.parquet", "report.html", "parts"),
        *("gap.png", "distributions.png", "calibration.png"),
    }
    assert main(["demo", "--output", str(folder)]) == 2
    assert "there are results already" in capsys.readouterr().err


# configs/


@pytest.mark.parametrize("path", sorted(configs_folder().glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_goes_with_the_commands_in_its_header(path):
    header = re.sub(r" \\\n#\s+", " ", path.read_text())
    launches = re.findall(r"^#   ugap (\w+)(?: (\w+))? --config (\S+)(.*)$", header, re.MULTILINE)
    assert launches, f"{path.name} names no command"
    for command, program, name, options in launches:
        assert name == str(path.relative_to(configs_folder()))
        words = ["--config", name, *options.split()]
        if command == "train":
            arguments, config = train.parser(program, load_program(programs_folder("train") / f"{program}.py")).parse(
                words
            )
            assert config.output_dir == words[words.index("--output_dir") + 1]
            assert arguments.data
        elif command == "eval":
            path = programs_folder("eval") / f"{program}.py"
            assert parse(load_program(path).Arguments, f"eval {program}", "", words).output
        else:
            module = {"measure": measure, "profile": profile, "score": score, "study": study}[command]
            assert parse(module.Arguments, command, "", words).output
