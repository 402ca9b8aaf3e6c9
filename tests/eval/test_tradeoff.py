"""The sweep as a program, on tiny models: what is trained, what is not trained again, the points and the frontier."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from ugap.cli.main import main

SWEEP = ["--weights", "1", "--limits", "0.5", "none", "--objectives", "gem"]
FOLDERS = ["weight-1-limit-0.5", "weight-1-limit-none", "gem"]
NAMES = ["w=1, limit 0.5", "w=1, no limit", "GEM"]


@pytest.fixture(scope="module")
def files(text_rows, tiny_folder, tmp_path_factory):
    """Texts to train on and to compare with, and the config of the trainings."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("train", "test"):
        rows = [{**row, "id": f"{name}-{row['id']}", "text": f"{row['text']} {name}."} for row in text_rows]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = {"model": str(tiny_folder), "mode": "balanced", "constraint_limit": 0.1, "max_steps": 2, "eval_every": 0}
    small = {"piece_tokens": 32, "prefix_tokens": 8, "eval_tokens": 8, "eval_facts": 2, "eval_limit": 2, "lora_r": 2}
    (folder / "sft.yaml").write_text(yaml.safe_dump({**config, **small}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def adapter(make_model, tmp_path_factory):
    """`adapter(name, scale)`: the folder of an adapter that changes the base by so much."""
    root = tmp_path_factory.mktemp("adapters")

    def make(name, scale):
        torch.manual_seed(1)
        adapted = get_peft_model(make_model("llama", eos_token_id=0), LoraConfig(r=4, target_modules="all-linear"))
        for parameter, weights in adapted.named_parameters():
            if "lora_B" in parameter:
                weights.data.normal_(std=scale)
        adapted.save_pretrained(str(root / name))
        return root / name

    return make


@pytest.fixture(scope="module")
def words(files):
    train = ["--train_config", str(files / "sft.yaml"), "--override", f"data={files / 'train.jsonl'}"]
    sizes = ["--prefix_tokens", "8", "--max_new_tokens", "16", "--per_text", "1", "--facts_limit", "6"]
    return ["eval", "tradeoff", *train, "--data", str(files / "test.jsonl"), *sizes]


@pytest.fixture
def training(monkeypatch, adapter):
    """A training that takes no time: the adapter is there at once. The configs that it was started with, in order."""
    started: list[tuple[dict, list[str]]] = []
    really_run: Any = subprocess.run

    def run(command: Any, *arguments: Any, stdout: Any = None, **options: Any) -> Any:
        if "--config" not in command:
            return really_run(command, *arguments, stdout=stdout, **options)
        path = Path(command[command.index("--config") + 1])
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        started.append((config, command))
        if config.get("weight") == 0.75:
            stdout.write("step 1\nugap: error: no luck\n\n")
            return subprocess.CompletedProcess(command, 2)
        scale = 0.05 * len(started)
        shutil.copytree(adapter(f"trained-{len(started)}", scale), config["output_dir"], dirs_exist_ok=True)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return started


def read(folder, name="tradeoff"):
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_sweep(words, training, adapter, files, tiny_folder, tmp_path, capsys):
    output, added = tmp_path / "out", adapter("added", 0.3)
    run = [*words, *SWEEP, "--match", "--tune", str(files / "train.jsonl"), "--output", str(output)]
    assert main(run) == 0
    record = read(output)
    assert [one["name"] for one in record["runs"]] == NAMES
    assert [Path(config["output_dir"]).name for config, _ in training] == FOLDERS
    for config, command in training:
        assert command[1:5] == ["-m", "ugap.cli.main", "train", "sft"]
        assert (config["data"], config["max_steps"]) == (str(files / "train.jsonl"), 2)
    weights = [(config["objective"], config["weight"], config["constraint_limit"]) for config, _ in training[:2]]
    assert weights == [("creativity-reality", 1, limit) for limit in (0.5, None)]
    assert all(config["mode"] is None for config, _ in training[:2])
    assert (training[2][0]["objective"], training[2][0]["constraint_limit"]) == ("gem", None)

    points = {point["model"]: point for point in record["points"] if point["own_decoding"] == "ancestral"}
    assert list(points) == ["base", *NAMES]
    assert len(record["points"]) == len(points) + 1  # the base at the matched temperature
    measured = read(output, "before_after")
    for point in record["points"]:
        (row,) = [
            row
            for row in measured["rows"]
            if (row["writer"], row["decoding"]) == (point["model"], point["own_decoding"])
        ]
        assert point["gap"] == row["measures"]["nll"]["gap"]
        assert point["size"] == abs(point["gap"])
        low, high = point["size_ci95"]
        assert 0 <= low <= point["size"] <= high
        (asked,) = [
            answers for answers in measured["facts"]["answers"]
            if (answers["writer"], answers["test"]) == (point["model"], "contrastive")
        ]  # fmt: skip
        assert point["accuracy"] == sum(item["right"] for item in asked["items"]) / 6
        beaten = any(
            other["size"] <= point["size"]
            and other["accuracy"] >= point["accuracy"]
            and (other["size"], other["accuracy"]) != (point["size"], point["accuracy"])
            for other in record["points"]
        )
        assert point["pareto"] is not beaten
    assert (output / "tradeoff.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "Size of the gap in surprisal" in printed
    assert "training 3 of 3, GEM" in printed

    # Once more, with an adapter and a weight: what is finished is not made again.
    more = [*run, "--weights", "0.5", "--add", f"grpo={added}", "--resume"]
    assert main(more) == 0
    assert len(training) == 5
    again = read(output)
    known = {(point["model"], point["own_decoding"]): point["size"] for point in again["points"]}
    for point in record["points"]:
        assert known[point["model"], point["own_decoding"]] == point["size"]
    assert {"grpo", "w=0.5, limit 0.5", "w=0.5, no limit"} <= {model for model, _ in known}
    assert [one["seconds"] for one in again["runs"] if one["name"] in NAMES] == [
        one["seconds"] for one in record["runs"]
    ]


def test_a_training_that_fails(words, training, tmp_path, refused):
    output = tmp_path / "out"
    run = [*words, "--weights", "0.25", "0.75", "--limits", "none", "--objectives", "gem", "--output", str(output)]
    line = refused(*run)
    assert "training w=0.75, no limit ended with status 2: ugap: error: no luck (log: " in line
    assert not (output / "tradeoff.json").exists()
    assert "there are results already; add --resume" in refused(*run)
    # What was finished stays so; an interrupted training goes on from its checkpoint.
    (output / "runs" / "weight-0.75-limit-none").mkdir()
    (output / "runs" / "weight-0.75-limit-none" / "ugap_run.json").touch()
    refused(*run, "--resume")
    assert [Path(config["output_dir"]).name for config, _ in training] == [
        "weight-0.25-limit-none",
        *["weight-0.75-limit-none"] * 2,
    ]
    assert "--resume_from_checkpoint" not in training[1][1]
    assert training[2][1][-2:] == ["--resume_from_checkpoint", "yes"]


def test_runs_of_another_config_are_not_mixed(words, training, tmp_path, refused):
    run = [*words, "--weights", "0.75", "--limits", "none", "--output", str(tmp_path / "out")]
    refused(*run)
    line = refused(*run, "--override", "max_steps=5", "--resume")
    assert "max_steps was 2 and is 5 now; resume with the old settings" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limits", "much"], "limits: 'much' is neither a number nor none"),
        (["--objectives", "dpo"], "objectives: 'dpo' is none of cross-entropy, gem, none"),
        (["--override", "steps"], "override 'steps': not NAME=VALUE"),
        (["--override", "model="], "has no model; add --override model=..."),
        (["--override", "adapter=runs/a"], "goes on from an adapter"),
        (["--facts", "none"], "--facts none leaves nothing to plot"),
        (["--add", "x=nowhere"], "nowhere: not the folder of a PEFT adapter"),
        (["--train_config", "none.yaml"], "none.yaml: no such file"),
        (["--match"], "--match needs --tune"),
        (["--decoding", "gredy"], "unknown decoding 'gredy'"),
    ],
)
def test_bad_input(words, training, tmp_path, refused, options, message):
    assert message in refused(*words, "--output", str(tmp_path / "out"), *options)
    assert not training
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_real_trainings(words, files, tmp_path, capsys):
    output = tmp_path / "out"
    run = [*words, "--weights", "1", "--limits", "0.5", "--objectives", "gem", "--output", str(output)]
    assert main(run) == 0
    record = read(output)
    assert [point["model"] for point in record["points"]] == ["base", "w=1, limit 0.5", "GEM"]
    assert all(one["seconds"] > 0 for one in record["runs"])
    assert "saved in" in (output / "runs" / "gem.log").read_text(encoding="utf-8")
    capsys.readouterr()
