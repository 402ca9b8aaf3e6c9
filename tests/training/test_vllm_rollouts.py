"""Prompts with sampling parameters of their own through TRL's vLLM backend; and GRPO on vLLM, where it is installed."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ugap.errors import InputError
from ugap.study.vllm_engine import PROCESSOR
from ugap.training.vllm_rollouts import Request, complete, keep_base, server_fault

WORKER = Path(__file__).with_name("vllm_worker.py")


class Client:
    """Completes a prompt by its ids and its seed, as TRL's client of a server does: `n` choices in a row."""

    def __init__(self):
        self.asked = []

    def generate(self, prompts, features=None, n=1, temperature=1.0, generation_kwargs=None):
        self.asked.append((prompts, {"temperature": temperature, **generation_kwargs}))
        ids = [[*prompt, generation_kwargs["seed"], i] for prompt in prompts for i in range(n)]
        logprobs = [[[-0.5] for _ in row] for row in ids]
        return {"prompt_ids": prompts, "completion_ids": ids, "logprobs": logprobs, "logprob_token_ids": ids}


class Backend:
    """TRL's backend in the main process: it gathers the prompts, and asks the server once for the copies of each."""

    mode = "server"

    def __init__(self):
        self.vllm_client, self.accelerator = Client(), SimpleNamespace(is_main_process=True)

    def generate(self, prompts, images, num_generations):
        assert images is None
        gathered = pickle.loads(pickle.dumps(prompts))[::num_generations]  # noqa: S301
        answer = self.vllm_client.generate(
            prompts=gathered, n=num_generations, temperature=0.7, generation_kwargs={"top_k": 0}
        )
        return answer["prompt_ids"], answer["completion_ids"], answer["logprobs"], answer["logprob_token_ids"]


def test_each_prompt_has_its_parameters_on_a_server():
    backend = Backend()
    human = {"seed": 7, "temperature": 1.0, "extra_args": {"ugap_weight": 1.0}}
    requests = [Request([1, 2], human)] * 2 + [Request([3], {"seed": 8})] * 2
    ids, logprobs = complete(backend, requests, 2)
    assert ids == [[1, 2, 7, 0], [1, 2, 7, 1], [3, 8, 0], [3, 8, 1]]
    assert logprobs == [[-0.5] * len(row) for row in ids]
    (first, params), (second, plain) = sorted(backend.vllm_client.asked)
    assert (first, second) == ([[1, 2]], [[3]])
    assert params == {"top_k": 0, "seed": 7, "temperature": 1.0, "vllm_xargs": {"ugap_weight": 1.0}}
    assert plain == {"top_k": 0, "seed": 8, "temperature": 0.7}
    # What TRL itself calls stays as it was.
    assert "generate" not in vars(backend.vllm_client)


def test_what_vllm_refuses_is_one_line():
    class Refusing(Client):
        def generate(self, *args, **kwargs):
            raise ValueError("the prompt\nis too long")

    backend = Backend()
    backend.vllm_client = Refusing()
    with pytest.raises(InputError, match=r"^vLLM: the prompt is too long$"):
        complete(backend, [Request([1], {"seed": 0})], 1)
    assert "generate" not in vars(backend.vllm_client)


def test_a_sync_leaves_the_bits_of_the_base(make_model):
    model = get_peft_model(make_model("llama"), LoraConfig(target_modules="all-linear", init_lora_weights=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}

    def sync_weights():
        model.merge_adapter()
        model.unmerge_adapter()

    def changed():
        now = dict(model.named_parameters())
        return [name for name, value in before.items() if not torch.equal(value, now[name])]

    generation = SimpleNamespace(model=model, sync_weights=sync_weights)
    keep_base(generation)
    generation.sync_weights()
    generation.sync_weights()
    assert changed() == []
    sync_weights()
    assert changed()  # or there is nothing to mend


@pytest.mark.parametrize(
    ("processors", "mode", "fault"),
    [
        ([PROCESSOR], "processed_logprobs", None),
        (
            [PROCESSOR],
            "raw_logprobs",
            r"--logprobs-mode raw_logprobs.*start it with --logprobs-mode processed",
        ),
        (None, "processed_logprobs", f"lacks our sampler: start it with --logits-processors {PROCESSOR}"),
        (["another:Processor"], "processed_logprobs", "lacks our sampler"),
    ],
)
def test_a_server_that_cannot_be_right_is_refused(processors, mode, fault):
    found = server_fault({"model_config": {"logits_processors": processors, "logprobs_mode": mode}})
    if fault is None:
        assert found is None
    else:
        with pytest.raises(InputError, match=fault):
            raise InputError(found)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM: make test-vllm")
@pytest.mark.parametrize("rollouts", ["policy", "human"])
def test_the_ratio_is_to_what_vllm_drew_and_counts_once(rollouts, tmp_path):
    done = subprocess.run(
        [sys.executable, str(WORKER), rollouts, "2", str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(WORKER.parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    rows = json.loads(done.stdout.splitlines()[-1])
    # The second step has other weights than the model that vLLM read.
    assert {(row["step"], row["domain"]) for row in rows} == {
        (s, d) for s in (0, 1) for d in ("creative", "functional")
    }
    for row in rows:
        assert abs(row["engine"] - 1) < 0.01, row
        assert row["outside"] < 0.05, row
        assert abs(row["loss"] - row["policy"]) < 0.002, row
        # The sampler draws from another distribution than the policy, and on creative rows alone.
        assert (row["apart"] > 0.3) == (rollouts == "human" and row["domain"] == "creative"), row
