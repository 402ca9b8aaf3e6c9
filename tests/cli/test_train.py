"""`ugap train`: the list, the options of two dataclasses, defaults that follow from others, and the launch."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from ugap.cli.main import main
from ugap.cli.programs import configs_folder, load_program, programs_folder
from ugap.cli.train import Launch, launch_words, parser, split_launch

ROOT = Path(__file__).parents[2]
PROGRAMS = ("dpo", "grpo", "sft")


@pytest.fixture(scope="module")
def modules():
    return {name: load_program(programs_folder("train") / f"{name}.py") for name in PROGRAMS}


@pytest.fixture
def read(modules):
    """`read(program, *words)`: the arguments and the config of a command line."""
    return lambda program, *words: parser(program, modules[program]).parse(["--model", "m", "--data", "d", *words])


def test_the_list(capsys):
    assert main(["train"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ugap train <program> [options]\n")
    assert re.findall(r"^  (\w+)  +Fine-tune a model", printed, re.MULTILINE) == list(PROGRAMS)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sfd"], "unknown program 'sfd'; did you mean sft? (see ugap train --help)"),
        (["sft"], "the following arguments are required: --model, --data (see ugap train sft --help)"),
        (
            ["sft", "--model", "m", "--data", "d", "--constrain_limit", "1"],
            "unknown option --constrain_limit; did you mean --constraint_limit? (see ugap train sft --help)",
        ),
        (
            ["grpo", "--model", "m", "--data", "d", "--num_generation", "1", "--num_processes", "2"],
            "unknown option --num_generation; did you mean --num_generations? (see ugap train grpo --help)",
        ),
        (["sft", "--num_processes", "two"], "--num_processes: invalid int value: 'two' (see ugap train sft --help)"),
        (["sft", "--num_processes", "0"], "--num_processes is 0, and at least 1 is needed (see ugap train sft --help)"),
        (
            ["sft", "--model", "m", "--data", "d", "--accelerate", "fsdp9"],
            "--accelerate fsdp9: neither a file nor one of fsdp2, multi_gpu, zero2",
        ),
    ],
)
def test_bad_words_get_one_line(words, line, refused):
    assert refused("train", *words) == f"ugap: error: {line}\n"


class TestHelp:
    @pytest.fixture
    def text(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "120")

        def show(program, option="--help"):
            assert main(["train", program, option]) == 0
            return capsys.readouterr().out

        return show

    @pytest.mark.parametrize("program", PROGRAMS)
    def test_our_options_come_first_and_trls_are_few(self, program, text):
        shown = text(program)
        sections = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
        rewards = [] if program == "sft" else ["rewards:"]
        assert sections[: 4 + len(rewards)] == ["examples:", "policy:", "data:", *rewards, "evaluations:"]
        assert "training:" in sections
        assert "more options of the trainer:" not in sections
        assert "--adam_beta1" not in shown
        for option in ("--lora_r N", "--learning_rate X", "--output_dir TEXT", "--num_processes N", "--help_all"):
            assert len(re.findall(rf"^  {option} ", shown, re.MULTILINE)) == 1

    def test_the_options_that_the_trainer_adds_are_a_section(self, text):
        section = text("sft").partition("\ntrainer:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  --(\w+)", section, re.MULTILINE)[:2] == ["constraint_limit", "constraint_metric"]
        assert "--objective" in section

    def test_defaults_are_those_that_hold(self, text, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        shown = " ".join(text("sft").split())
        assert "initial learning rate for AdamW. (default: 0.0001)" in shown
        assert "(default: runs/sft)" in shown
        assert re.search(r"--use_cpu \[yes\|no\] .*?\(default: yes\)", shown)

    def test_all_options(self, text):
        shown = text("sft", "--help_all")
        assert "\nmore options of the trainer:\n" in shown
        assert "--adam_beta1 X" in shown


class TestDefaults:
    def test_of_a_cpu(self, read):
        _, config = read("grpo", "--use_cpu")
        assert (config.bf16, config.gradient_checkpointing, config.use_cpu) == (False, False, True)
        assert (config.output_dir, config.report_to, config.max_completion_length) == ("runs/grpo", [], 64)

    def test_an_adapter_learns_faster_than_all_weights(self, read):
        assert read("grpo", "--use_cpu")[1].learning_rate == 1e-4
        assert read("grpo", "--use_cpu", "--full")[1].learning_rate == 1e-6

    def test_a_file_wins_over_them_and_the_command_line_over_the_file(self, read, tmp_path):
        path = tmp_path / "run.yaml"
        path.write_text("use_cpu: yes\nlearning_rate: 3e-3\noutput_dir: here\nlora_r: 2\nlr_scheduler_kwargs: {a: 1}\n")
        arguments, config = read("sft", "--config", str(path), "--output_dir", "there")
        assert (arguments.lora_r, config.learning_rate, config.output_dir) == (2, 3e-3, "there")
        assert config.lr_scheduler_kwargs == {"a": 1}
        path.write_text("report_to: [wandb, tensorboard]\nuse_cpu: yes\nfull: yes\n")
        assert read("sft", "--config", str(path))[1].report_to == ["wandb", "tensorboard"]
        assert read("sft", "--config", str(path))[1].learning_rate == 2e-5

    def test_an_option_that_is_none_in_a_file(self, modules, tmp_path, refused):
        path = tmp_path / "run.yaml"
        path.write_text("constrain_limit: 1\n")
        line = refused("train", "sft", "--config", str(path))
        assert f"{path}: unknown option 'constrain_limit'; did you mean constraint_limit?" in line


class TestLaunch:
    def test_its_options_are_taken_out_of_the_words(self):
        words = [
            "--model",
            "m",
            "--num_processes",
            "2",
            "--data",
            "a",
            "b",
            "--accelerate=fsdp2",
            "--machine-rank",
            "1",
        ]
        launch, rest = split_launch(words)
        assert launch == Launch(num_processes=2, accelerate="fsdp2", machine_rank=1)
        assert rest == ["--model", "m", "--data", "a", "b"]
        assert split_launch(rest) == (Launch(), rest)

    @pytest.mark.parametrize(
        "path", sorted((configs_folder() / "accelerate").glob("*.yaml")), ids=lambda path: path.stem
    )
    def test_a_config_goes_with_the_commands_in_its_header(self, path, modules):
        header = re.sub(r" \\\n#\s+", " ", path.read_text())
        commands = re.findall(r"^#   ugap train (\w+) (.*)$", header, re.MULTILINE)
        assert commands
        for program, words in commands:
            launch, rest = split_launch(shlex.split(words))
            assert launch.accelerate == path.stem
            assert parser(program, modules[program]).check(rest)
            options = launch_command_parser().parse_args([*launch_words(launch), "sft.py", *rest])
            assert options.config_file == str(path)
            assert options.training_script_args == rest
            assert options.num_processes >= 1
        config = load_config_from_file(str(path))
        assert config.distributed_type.value in ("MULTI_GPU", "FSDP", "DEEPSPEED")
        assert config.mixed_precision == "no"

    def test_a_file_says_how_many_processes(self, tmp_path):
        path = tmp_path / "own.yaml"
        path.write_text("num_processes: 3\n")
        assert launch_words(Launch(accelerate=str(path))) == ["--config_file", str(path)]
        assert launch_words(Launch(accelerate=str(path), num_processes=2))[:2] == ["--num_processes", "2"]


@pytest.fixture
def command(write_rows, text_rows, tiny_folder, tmp_path):
    """A short run in a process of its own."""
    path = write_rows(text_rows)

    def run(*more):
        words = [
            *("train", "sft", "--model", str(tiny_folder), "--data", path, "--functional", path, "--use_cpu", "yes"),
            *("--output_dir", str(tmp_path / "run"), "--max_steps", "3", "--eval_every", "2", "--prefix_tokens", "8"),
            *("--eval_tokens", "16", "--eval_facts", "12", "--piece_tokens", "32", "--constraint_limit", "0.01"),
            *more,
        ]
        if "--per_device_train_batch_size" not in more:
            words += ["--per_device_train_batch_size", "2"]
        call = [sys.executable, "-m", "ugap.cli.main", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)

    return run


@pytest.mark.slow
class TestProcesses:
    def test_two_processes_log_the_metrics_of_one(self, command, tmp_path):
        """Of one step on the same four rows: sums and counts are added up, and no mean of means is taken."""
        kept: list[tuple[dict, dict]] = []
        printed = []
        for words in (["--num_processes", "2"], ["--per_device_train_batch_size", "4"]):
            folder = tmp_path / f"run{len(kept)}"
            settings = ["--max_steps", "1", "--logging_steps", "1", "--constraint_warmup", "0", "--save_steps", "1"]
            settings += ["--functional_share", "0.6", "--seed", "3", "--weight", "0"]
            done = command(*words, *settings, "--output_dir", str(folder))
            assert done.returncode == 0, done.stderr
            printed.append(done.stdout)
            state = json.loads((folder / "checkpoint-1" / "trainer_state.json").read_text())
            log = next(log for log in state["log_history"] if "creative/nll" in log)
            constraint = json.loads((folder / "checkpoint-1" / "constraint_state.json").read_text())
            kept.append((log, constraint))
        (two, of_two), (one, of_one) = kept
        assert printed[0].count("texts to train on") == 1
        assert "2 rows x 1 x 2 processes a step" in printed[0]
        evaluations = [json.loads(line) for line in (tmp_path / "run0" / "ugap_gap.jsonl").read_text().splitlines()]
        assert [evaluation["step"] for evaluation in evaluations] == [0, 1]
        assert (tmp_path / "run0" / "adapter_model.safetensors").is_file()
        for name in (
            "creative/nll",
            "creative/entropy",
            "functional/nll",
            "functional/entropy",
            "entropy",
            "num_tokens",
        ):
            assert two[name] == pytest.approx(one[name], rel=1e-5), name
        assert of_two["window"][0] == pytest.approx(of_one["window"][0], rel=1e-4, abs=1e-6)
        assert of_two["log_lambda"] == pytest.approx(of_one["log_lambda"], rel=1e-5)

    def test_the_exit_status_is_that_of_the_processes(self, command):
        done = command("--num_processes", "2", "--lora_target_modules", "c_attn")
        assert done.returncode == 2
        assert "ugap: error: lora_target_modules: " in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_program_is_a_script(self):
        call = [sys.executable, str(ROOT / "train" / "dpo.py"), "--data", "d"]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr == "ugap: error: the following arguments are required: --model (see ugap train dpo --help)\n"
