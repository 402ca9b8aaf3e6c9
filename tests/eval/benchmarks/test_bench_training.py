"""The benchmark of the trainers on tiny models: its variants, their parts, the table, what could not be measured."""

import dataclasses
import json
import subprocess
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from eval.benchmarks import bench_training as bench
from eval.benchmarks import random_model
from ugap.cli.arguments import parse
from ugap.cli.main import main
from ugap.models import load_model

GRPO, SFT = ["trl", "trivial", "shared", "separate"], ["sft-trl", "sft-ours"]
SIZES = ["--steps", "3", "--num_generations", "2", "--batch_size", "4", "--new_tokens", "4", "--text_tokens", "16"]
FIGURES = {"peak_bytes": 2e9, "step_seconds": 0.75, "parts": {"loss": 0.25, "backward": 0.375, "other": 0.125}}


@pytest.fixture
def words(tiny_folder, make_profile, text_rows, write_rows, tmp_path):
    profile = tmp_path / "profile.json"
    make_profile(load_model(str(tiny_folder))[0], n_texts=20).save(profile)
    files = ["--model", str(tiny_folder), "--profile", str(profile), "--data", write_rows(text_rows)]
    return ["eval", "bench_training", *files, *SIZES]


@pytest.fixture
def built(words, tmp_path):
    """`built(variant)`: its trainer."""
    arguments = parse(bench.Arguments, "eval bench_training", "", words[2:])
    return lambda variant: bench.build(arguments, variant, str(tmp_path / variant))


@pytest.fixture
def children(monkeypatch):
    """`children(**answers)`: what the process of each variant prints, or the status and stderr with which it ends."""

    def run(answers, command, **_):
        variant = command[-1].removeprefix("--only=")
        assert "--steps=3" in command
        assert [word for word in command if word.startswith(("--variants", "--output"))] == []
        status, errors = answers.get(variant.replace("-", "_"), (0, ""))
        return SimpleNamespace(returncode=status, stdout=f"a word of TRL\n{json.dumps(FIGURES)}\n", stderr=errors)

    return lambda **answers: monkeypatch.setattr(subprocess, "run", partial(run, answers))


@pytest.mark.slow
def test_all_variants_are_measured_in_bfloat16(tmp_path, capsys):
    random_model.make(tmp_path, "tiny", "cpu")
    names = {"model": random_model.MODEL, "profile": random_model.PROFILE, "data": random_model.TEXTS}
    files = [word for name, file in names.items() for word in (f"--{name}", str(tmp_path / file))]
    output = tmp_path / "bench.json"
    assert main(["eval", "bench_training", *files, *SIZES, "--dtype", "bfloat16", "--output", str(output)]) == 0
    record, table = json.loads(output.read_text()), capsys.readouterr().out.splitlines()[2:]
    assert list(record["variants"]) == [*GRPO, *SFT]
    assert record["failed"] == {}
    for one in record["variants"].values():
        assert one["peak_bytes"] > 1e8
        assert one["step_seconds"] > 0
    assert [row.split("|")[1].strip(" `") for row in table[2:]] == [*GRPO, *SFT]
    assert {row.count("|") for row in table} == {11}


@pytest.mark.slow
def test_a_variant_that_fails_stops_no_other(words, tmp_path, capsys):
    output = tmp_path / "bench.json"
    asked = ["--variants", "shared", "trl", "--profile", str(tmp_path / "none.json"), "--output", str(output)]
    assert main([*words, *asked]) == 0
    record = json.loads(output.read_text())
    assert list(record["variants"]) == ["trl"]
    assert "none.json" in record["failed"]["shared"]
    assert f"- `shared` was not measured: {record['failed']['shared']}" in capsys.readouterr().out


@pytest.mark.parametrize("variant", [*GRPO, *SFT])
def test_one_variant_and_its_parts(words, variant, capsys):
    begin = time.perf_counter()
    assert main([*words, "--only", variant]) == 0
    wall = time.perf_counter() - begin
    found = json.loads(capsys.readouterr().out)  # nothing else is printed
    parts = list(bench.PARTS if variant in GRPO else ("loss", "backward", "other"))
    assert list(found["parts"]) == parts
    assert min(found["parts"].values()) > 0
    # The median of two steps is their mean, so that the parts add up.
    assert sum(found["parts"].values()) == pytest.approx(found["step_seconds"])
    assert 2 * found["step_seconds"] < wall
    if variant == "shared":
        assert found["parts"]["reward"] > 1e-3  # a forward pass


def test_trls_trainers_are_trls_own_and_have_our_settings(built):
    theirs, ours = built("trl"), built("trivial")
    assert type(theirs) is GRPOTrainer
    assert theirs.rollout_func is None
    assert ours.rollout_func is not None
    assert same_settings(GRPOConfig, theirs, ours) == {"output_dir", "multi_objective_aggregation", "scale_rewards"}
    assert theirs.generation_config.top_k == 0
    assert list(theirs.train_dataset["prompt"]) == list(ours.train_dataset["prompt"])
    theirs, ours = built("sft-trl"), built("sft-ours")
    assert type(theirs) is SFTTrainer
    assert same_settings(SFTConfig, theirs, ours) == {"output_dir"}
    rows = list(theirs.train_dataset["input_ids"])
    assert rows == list(ours.train_dataset["input_ids"])
    assert len(rows) == 12
    assert {len(row) for row in rows} == {16}
    assert set(ours.train_dataset["domain"]) == {"creative", "functional"}


def same_settings(config, theirs, ours):
    """The settings that are not the same in two trainers, whose adapters are."""
    adapters = [trainer.model.peft_config["default"].to_dict() for trainer in (theirs, ours)]
    assert adapters[0] == adapters[1]
    names = {field.name for field in dataclasses.fields(config)} - {"logging_dir", "run_name"}
    return {name for name in names if getattr(theirs.args, name, None) != getattr(ours.args, name, None)}


def test_a_moment_counts_for_the_innermost_part(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    waits = []
    watch = bench.Stopwatch(lambda: waits.append(now[0]))
    inner = SimpleNamespace(work=lambda: spend(2))

    def outer_work(fails=False):
        spend(4)
        inner.work()
        spend(8)
        if fails:
            raise ValueError

    outer = SimpleNamespace(work=outer_work)
    watch.time(inner, "work", "reward")
    watch.time(outer, "work", "generate")
    spend(100)  # before the start
    watch.start()
    spend(1)
    outer.work()
    watch.lap()
    with pytest.raises(ValueError):  # noqa: PT011  (it says nothing)
        outer.work(fails=True)
    spend(16)
    watch.lap()
    assert watch.steps == [
        {"other": 1.0, "generate": 12.0, "reward": 2.0},
        {"other": 16.0, "generate": 12.0, "reward": 2.0},
    ]
    assert len(waits) == 11


def test_a_method_that_is_not_there_or_never_runs(words, built, monkeypatch):
    trainer = built("sft-ours")
    with pytest.raises(AttributeError, match="_generate"):
        bench.attach(bench.Stopwatch(lambda: None), trainer, ["generate"])
    monkeypatch.setitem(bench.METHODS, "loss", "prediction_step")
    arguments = parse(bench.Arguments, "eval bench_training", "", words[2:])
    with pytest.raises(RuntimeError, match="loss: what is timed for it did not run"):
        bench.measure(arguments, "sft-ours")


def test_table_and_file(words, children, tmp_path, capsys):
    output = tmp_path / "out" / "bench.json"
    children(trl=(1, "Traceback\n  a line\nRuntimeError: no | way\n"), separate=(-9, "a warning\n"))
    assert main([*words, "--output", str(output), "--variants", *SFT[::-1], *GRPO]) == 0
    head, blank, *table = capsys.readouterr().out.splitlines()
    assert "3 steps of 4 completions of 4 tokens (GRPO) or 4 texts of 16 (SFT)" in head
    assert blank == ""
    assert table == [
        "| variant | peak GB | of trl's | s per step | of trl's | generate | reward | loss | backward | other |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        "| `trivial` | 2.00 |  | 0.750 |  |  |  | 0.250 | 0.375 | 0.125 |",
        "| `shared` | 2.00 |  | 0.750 |  |  |  | 0.250 | 0.375 | 0.125 |",
        "| `sft-trl` | 2.00 | 1.00 | 0.750 | 1.00 |  |  | 0.250 | 0.375 | 0.125 |",
        "| `sft-ours` | 2.00 | 1.00 | 0.750 | 1.00 |  |  | 0.250 | 0.375 | 0.125 |",
        "",
        "- `trl` was not measured: RuntimeError: no | way",
        "- `separate` was not measured: its process ended with status -9",
    ]
    record = json.loads(output.read_text())
    assert record["variants"] == dict.fromkeys(["trivial", "shared", *SFT], FIGURES)
    assert record["failed"]["trl"] == "RuntimeError: no | way"
    assert record["settings"]["environment"]["trl"]


def test_ratios_are_to_trls_of_the_kind():
    doubled = {**FIGURES, "peak_bytes": 4e9, "step_seconds": 1.125}
    row = bench.table_row("shared", {"trl": FIGURES, "sft-trl": doubled, "shared": doubled})
    assert row.startswith("| `shared` | 4.00 | 2.00 | 1.125 | 1.50 |")


def test_the_file_is_written_after_each_variant(words, children, monkeypatch, tmp_path):
    output, seen = tmp_path / "bench.json", []
    children()
    plain = subprocess.run

    def run(*args, **kwargs):
        seen.append(list(json.loads(output.read_text())["variants"]) if output.exists() else [])
        return plain(*args, **kwargs)

    monkeypatch.setattr(subprocess, "run", run)
    bench.run(parse(bench.Arguments, "eval bench_training", "", [*words[2:], "--output", str(output)]))
    assert seen == [[*GRPO, *SFT][:n] for n in range(6)]


def test_no_variant_is_measured(words, children, tmp_path, capsys):
    failure = (2, "ugap: error: no such model\n")
    children(trl=failure, sft_trl=failure)
    output = tmp_path / "bench.json"
    assert main([*words, "--variants", "trl", "sft-trl", "--output", str(output)]) == 2
    errors = capsys.readouterr().err
    assert errors.splitlines()[-1] == "ugap: error: no variant was measured; trl: no such model"
    assert list(json.loads(output.read_text())["failed"]) == ["trl", "sft-trl"]


def test_bad_input(words, refused):
    assert "steps: expected a positive number, got 0" in refused(*words, "--steps", "0")
    assert "num_generations: 3 does not part a batch of 4" in refused(*words, "--num_generations", "3")
    assert "num_generations: 1 does not part" in refused(*words, "--num_generations", "1")
    assert "unknown variant 'sft-our'; did you mean sft-ours?" in refused(*words, "--variants", "trl", "sft-our")
    assert "unknown variant 'x' (there are trl, trivial," in refused(*words, "--only", "x")
    assert "no text has 100000 tokens" in refused(*words, "--only", "sft-ours", "--text_tokens", "100000")
    crowd = ["--batch_size", "1000", "--only", "trl"]
    assert "prompts, and a step has 500" in refused(*words, *crowd)
    if not torch.cuda.is_available():
        assert "device: torch finds no CUDA device here" in refused(*words, "--device", "cuda")
