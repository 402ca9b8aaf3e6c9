"""A step is the same however its rows are spread over micro-batches and processes: gradients and logged figures."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from tests.training import spread_worker
from tests.training.spread_worker import GRPO, OTHERS, SFT, moved, named, one_step

WORKER = Path(spread_worker.__file__)
ROOT = WORKER.parents[2]
SPREAD = [(2, 4), (1, 8)]


def cases(configs, fast):
    """The configs by name; those that are part of `fast` too take seconds more."""
    marks = {name: [] if name == fast else [pytest.mark.slow] for name in configs}
    return [pytest.param(config, id=name, marks=marks[name]) for name, config in configs.items()]


@pytest.fixture(scope="module")
def rows(human_texts):
    """Six creative rows and two functional ones, of 4 words or 40."""
    texts = [" ".join(text.split()[: (4, 40)[i % 2]]) for i, text in enumerate(human_texts[:8])]
    domains = ["creative"] * 6 + ["functional"] * 2
    return Dataset.from_list([{"text": t, "domain": domain} for t, domain in zip(texts, domains, strict=True)])


@pytest.fixture
def sft(base_model, tokenizer, rows, tmp_path):
    """`sft(batch, steps, **config)`: a trainer of which a step is all the rows."""
    return lambda *spread, **config: spread_worker.sft(base_model(), tokenizer, rows, tmp_path, *spread, **config)


@pytest.fixture
def grpo(base_model, tokenizer, prompts, human_profile, tmp_path):
    """`grpo(batch, steps, **config)`: a trainer of which a step is eight completions, always the same."""
    return lambda *spread, **config: spread_worker.grpo(
        base_model(), tokenizer, prompts, human_profile, tmp_path, *spread, **config
    )


def assert_same(found, expected):
    (gradient, figures), (its, those) = found, expected
    assert its.norm() > 1e-3
    assert float((gradient - its).norm() / its.norm()) < 1e-5
    assert figures == pytest.approx(those, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("config", cases(SFT, "all"))
def test_sft(config, sft):
    expected = one_step(sft(8, 1, **config))
    for spread in SPREAD:
        assert_same(one_step(sft(*spread, **config)), expected)


@pytest.mark.parametrize("config", cases(SFT, "all"))
def test_sft_is_evaluated_as_a_whole(config, sft):
    def evaluated(batch):
        metrics = moved(sft(8, 1, per_device_eval_batch_size=batch, **config)).evaluate()
        return {name: value for name, value in metrics.items() if not named(name, OTHERS)}

    expected = evaluated(8)
    for batch in (1, 3):
        assert evaluated(batch) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("config", cases(GRPO, "both"))
def test_grpo(config, grpo):
    expected = one_step(grpo(8, 1, **config))
    for spread in SPREAD:
        assert_same(one_step(grpo(*spread, **config)), expected)


@pytest.fixture(scope="module")
def folder(save_model, base_model, human_profile, rows, prompts):
    """What the worker reads."""
    made = save_model("spread", base_model())
    human_profile.save(made / "profile.json")
    for name, data in (("rows", rows), ("prompts", prompts)):
        (made / f"{name}.json").write_text(json.dumps(data.to_list()))
    return made


def run(n, *words):
    """What the first of `n` processes writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(n)}
    folders = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), **(address if n > 1 else {})}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, words)],
            env={**environment, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if n > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(n)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * n, ended
    return json.loads(Path(words[-1], "record.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*(f"sft {name}" for name in SFT), *(f"grpo {name}" for name in GRPO)])
def test_two_processes(kind, folder, tmp_path):
    expected, *found = (run(n, folder, kind, *spread, tmp_path) for n, *spread in ((1, 8, 1), (2, 4, 1), (2, 2, 2)))
    for one in found:
        pairs = [(torch.tensor(record["gradient"]), record["figures"]) for record in (one, expected)]
        assert_same(*pairs)
        assert one["evaluated"] == pytest.approx(expected["evaluated"], rel=1e-5, abs=1e-6)
