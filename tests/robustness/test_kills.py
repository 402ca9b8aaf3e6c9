"""Killed at any moment and gone on with: every command ends with what an uninterrupted run makes, and leaves no more.

A kill is SIGKILL, at a random moment of the time that a run takes. The processes are forked from a server that has
imported everything, so that the kills fall on the work and not on the imports.
"""

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file

from ugap.cli.main import main

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="processes are forked")]

KILLS = {"measure": 26, "score": 22, "profile": 16, "study": 16, "report": 10, "train": 10}
HEAVY = ["ugap.study.gap.run", "ugap.study.multi.run", "ugap.report.write", "ugap.report.multi", "ugap.report.page"]
HEAVY += ["ugap.training.sft"]
SHORT = ["--prefix_tokens", "8", "--max_new_tokens", "12", "--batch_size", "2", "--decoding", "ancestral", "greedy"]
TRAIN = ["--use_cpu", "yes", "--max_steps", "6", "--save_steps", "2", "--eval_every", "3", "--disable_tqdm", "yes"]
TRAIN += ["--per_device_train_batch_size", "2", "--prefix_tokens", "8", "--eval_tokens", "12", "--eval_limit", "2"]
TRAIN += ["--eval_facts", "6", "--piece_tokens", "32", "--constraint_limit", "0.01", "--constraint_warmup", "1"]


def test_there_are_a_hundred():
    assert sum(KILLS.values()) == 100


@pytest.fixture(scope="module")
def server() -> Any:
    """Where processes are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ugap.cli.main", *HEAVY])
    return context


def work(words: Sequence[str]) -> None:
    """The body of a process: one command, which says nothing."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    os._exit(main(words))


def run(server: Any, words: Sequence[str], *, kill_after: float | None = None) -> int:
    """The exit status of a command, negative where it was killed."""
    process = server.Process(target=work, args=(list(words),))
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def files(folder: Path) -> list[str]:
    """Everything that lies in a folder, hidden files too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def killed_and_whole(
    server: Any,
    tmp_path: Path,
    n_kills: int,
    command: Callable[[Path, bool], list[str]],
    result: Callable[[Path], Any],
) -> None:
    """Run `command(folder, resume)` undisturbed in one folder, and with kills in others; compare what was made."""
    whole = tmp_path / "whole"
    whole.mkdir()
    assert run(server, command(whole, False)) == 0  # the first run of a server warms what the others find warm
    expected, left = result(whole), files(whole)
    timed = tmp_path / "timed"
    timed.mkdir()
    begin = time.monotonic()
    assert run(server, command(timed, False)) == 0
    seconds = time.monotonic() - begin

    rng, kills, number = random.Random(0), 0, 0
    while kills < n_kills:
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        number += 1
        status = -9
        # Three kills at most in one folder: the later ones fall on what goes on, the last run ends the work.
        for _ in range(min(3, n_kills - kills)):
            status = run(server, command(folder, any(folder.iterdir())), kill_after=rng.uniform(0, seconds))
            if status == 0:
                break  # it was done before it could be killed
            assert status == -9
            kills += 1
        if status:
            assert run(server, command(folder, any(folder.iterdir()))) == 0
        assert result(folder) == expected
        assert files(folder) == left


@pytest.fixture
def data(write_rows, text_rows) -> str:
    return write_rows(text_rows)


def table(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def without_environment(path: Path) -> Any:
    record = json.loads(path.read_text(encoding="utf-8"))
    record["settings"].pop("environment", None)
    return record


def test_measure(server, tmp_path, data, tiny_folder):
    def command(folder: Path, resume: bool) -> list[str]:
        words = ["measure", "--model", str(tiny_folder), "--data", data, "--output", str(folder / "out"), *SHORT]
        return [*words, "--limit", "6", *(["--resume"] if resume else [])]

    def result(folder: Path) -> Any:
        return without_environment(folder / "out" / "gap.json"), table(folder / "out" / "scores.parquet")

    killed_and_whole(server, tmp_path, KILLS["measure"], command, result)


def test_score(server, tmp_path, write_rows, text_rows, tiny_folder):
    many = write_rows([{"id": f"{row['id']}-{k}", "text": row["text"][k:]} for k in range(40) for row in text_rows])

    def command(folder: Path, resume: bool) -> list[str]:
        words = ["score", "--model", str(tiny_folder), "--input", many, "--output", str(folder / "scores.parquet")]
        return [*words, *(["--resume"] if resume else [])]

    def result(folder: Path) -> Any:
        return table(folder / "scores.parquet")

    killed_and_whole(server, tmp_path, KILLS["score"], command, result)


def test_profile(server, tmp_path, write_rows, text_rows, tiny_folder):
    many = write_rows(
        [{**row, "id": f"{row['id']}-{k}", "text": row["text"][k:]} for k in range(16) for row in text_rows]
    )

    def command(folder: Path, resume: bool) -> list[str]:
        words = ["profile", "--model", str(tiny_folder), "--data", many, "--output", str(folder / "profile.json")]
        return [*words, "--prefix_tokens", "8", *(["--resume"] if resume else [])]

    def result(folder: Path) -> Any:
        return json.loads((folder / "profile.json").read_text(encoding="utf-8"))

    killed_and_whole(server, tmp_path, KILLS["profile"], command, result)


def test_study(server, tmp_path, data, tiny_folder, chat_folder):
    models = [
        {"name": str(path), "family": "tiny", "stage": stage, "label": stage}
        for path, stage in ((tiny_folder, "base"), (chat_folder, "instruct"))
    ]
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({"models": models}), encoding="utf-8")

    def command(folder: Path, resume: bool) -> list[str]:
        words = ["study", "--config", str(config), "--data", data, "--output", str(folder / "out"), *SHORT]
        return [*words, "--limit", "4", *(["--resume"] if resume else [])]

    def result(folder: Path) -> Any:
        made = [folder / "out" / "models" / stage for stage in ("base", "instruct")]
        return [(without_environment(one / "gap.json"), table(one / "scores.parquet")) for one in made]

    killed_and_whole(server, tmp_path, KILLS["study"], command, result)


def test_report(server, tmp_path, data, tiny_folder):
    study = ["measure", "--model", str(tiny_folder), "--data", data, "--output", str(tmp_path / "study"), *SHORT]
    assert run(server, [*study, "--limit", "4"]) == 0

    def command(folder: Path, resume: bool) -> list[str]:
        return ["report", str(tmp_path / "study"), "--output", str(folder / "report.html")]

    def result(folder: Path) -> Any:
        return (folder / "report.html").read_bytes()

    killed_and_whole(server, tmp_path, KILLS["report"], command, result)


def test_train(server, tmp_path, data, tiny_folder):
    def command(folder: Path, resume: bool) -> list[str]:
        words = ["train", "sft", "--model", str(tiny_folder), "--data", data, "--functional", data, *TRAIN]
        again = (folder / "run" / "ugap_run.json").exists()
        return [*words, "--output_dir", str(folder / "run"), *(["--resume_from_checkpoint", "yes"] if again else [])]

    def result(folder: Path) -> Any:
        weights = load_file(folder / "run" / "adapter_model.safetensors")
        return {name: tensor.tolist() for name, tensor in weights.items()}

    killed_and_whole(server, tmp_path, KILLS["train"], command, result)
