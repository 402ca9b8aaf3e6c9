"""vLLM itself: one engine on a CPU, too small for its requests, so that it preempts some; a server; and a study.

`make test-vllm` runs it.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from ugap.models import load_model
from ugap.profile import HumanProfile
from ugap.sampling.engines.vllm import (
    PROFILE_VARIABLE,
    HumanEntropyProcessor,
    ProcessorV1,
    ProcessorV2,
    Requests,
)
from ugap.sampling.params import aimed, human_params
from ugap.sampling.portable.human import HumanSampler, State
from ugap.sampling.portable.special import suppressed_tokens
from ugap.study import parse_decodings
from ugap.study.decodings import decoder
from ugap.study.vllm_engine import sampling_settings

vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

pytestmark = pytest.mark.slow

NAME = "ugap.sampling.engines.vllm:HumanEntropyProcessor"
ASSET = "smollm2-135m-instruct"
NEW_TOKENS = 40
NEUTRAL = {"temperature": 1.0, "max_tokens": NEW_TOKENS, "logprobs": 0, "ignore_eos": True}
PROMPTS = ("Once upon a time", "The old man looked at the sea and", "It was raining when the train", "Dear Anna,\n\n")
STORY, NEWS = (human_params(HumanProfile.load(ASSET), kind) for kind in ("story", "news"))
# Extra arguments and sampling parameters: with ours, and without.
OURS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"ugap_mode": "creative"}, {}),
    ({"ugap_weight": 0.6, "ugap_kind": "story"}, {}),
    ({"ugap_mode": "balanced"}, {"seed": 3}),
    ({"ugap_mode": "precise"}, {}),
    ({"ugap_kind": "functional"}, {"allowed_token_ids": list(range(100, 20_000))}),
    ({"ugap_mode": "creative"}, {"bad_words": ["the", "and"]}),
    ({"ugap_weight": 1.0}, {"min_tokens": 8}),
    ({"ugap_params": json.dumps(STORY), "ugap_weight": 0.8}, {}),
    ({"ugap_params": json.dumps(NEWS), "ugap_weight": 0.8}, {}),
]
OTHERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"another": 1}, {}),
    ({}, {"temperature": 0.0}),
]


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(ASSET)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    for one in model:
        one.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PROFILE_VARIABLE, ASSET)
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine shares our process
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        yield vllm.LLM(
            model=str(folder),
            dtype="float32",
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=16,
            block_size=32,
            num_gpu_blocks_override=24,  # the 16 requests that may run start in a block each, and each needs two
            logprobs_mode="processed_logprobs",
            logits_processors=[NAME],
        )


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Any]:
    """vLLM's OpenAI-compatible server in a process of its own: its `url`, and `ask(**body)` for status and answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--generation-config", "vllm"]
    place = ["--model", str(folder), "--served-model-name", "model", "--host", "127.0.0.1", "--port", str(port)]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        *place,
        *options,
        "--logits-processors",
        NAME,
        "--logprobs-mode",
        "processed_logprobs",
    ]
    # TRL asks a server under development for its settings.
    settings = {PROFILE_VARIABLE: ASSET, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_SERVER_DEV_MODE": "1"}
    url = f"http://127.0.0.1:{port}"

    def ask(**body: Any) -> tuple[int, str]:
        data = json.dumps({"model": "model", "prompt": "Once", "max_tokens": 8, **body}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", data, {"Content-Type": "application/json"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    with subprocess.Popen(command, env={**os.environ, **settings}) as process:
        try:
            while True:
                assert process.poll() is None, "the server ended"
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5)  # noqa: S310
                    break
                except OSError:
                    time.sleep(1)
            yield SimpleNamespace(url=url, ask=ask)
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def studies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SimpleNamespace]:
    """What `ugap measure` made with each engine: texts by prefix and decoding, and the rows of the gap in surprisal."""
    found = {}
    for engine in ("transformers", "vllm"):
        output = tmp_path_factory.mktemp("study") / engine
        words = "--data demo --limit 8 --max_new_tokens 24 --no_pmi --decoding greedy ancestral top-p-0.9 ugap-creative"
        # The name of a model is in the seeds: by its whole path, each run of this test would have others.
        more = ["--model", f"./{folder.name}", "--profile", ASSET, "--output", str(output), "--engine", engine]
        if engine == "vllm":
            more += ["--engine_args", "enforce_eager=true", "max_model_len=512", "kv_cache_memory_bytes=500000000"]
        command = [sys.executable, "-m", "ugap.cli.main", "measure", *words.split(), *more]
        subprocess.run(command, check=True, cwd=folder.parent)
        texts = pq.read_table(output / "scores.parquet").to_pylist()
        found[engine] = SimpleNamespace(
            texts={(one["id"], one["decoding"]): one["text"] for one in texts},
            gaps={
                (row["domain"], row["decoding"]): row
                for row in json.loads((output / "gap.json").read_text())["gaps"]
                if row["measure"] == "nll"
            },
        )
    return found


@pytest.fixture(scope="module")
def batch(engine: Any) -> SimpleNamespace:
    """48 requests of all sorts at once, and how many of them came back with their state after a preemption."""
    settings = [*OURS, *OTHERS] * 4
    params = [vllm.SamplingParams(**{**NEUTRAL, **more}, extra_args=extra or None) for extra, more in settings]
    found: list[int | None] = []
    resume = Requests.resume

    def noted(requests: Requests, slot: int, keys: list[int]) -> int | None:
        found.append(resume(requests, slot, keys))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Requests, "resume", noted)
        outputs = engine.generate(list(itertools.islice(itertools.cycle(PROMPTS), len(params))), params, use_tqdm=False)
    return SimpleNamespace(settings=settings, params=params, outputs=outputs, found=found)


@torch.no_grad()
def logits_of(model: Any, output: Any) -> Tensor:
    """What transformers makes of the tokens: logits `(T, V)` before each token of the output."""
    prompt, tokens = output.prompt_token_ids, output.outputs[0].token_ids
    return model[0](input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]


def masked(logits: Tensor, more: dict[str, Any], engine: Any, tokens: list[int], params: Any) -> Tensor:
    """The tokens ruled out that vLLM rules out before the sampler."""
    logits = logits.clone()
    if "allowed_token_ids" in more:
        barred = torch.ones(logits.shape[-1], dtype=torch.bool)
        barred[more["allowed_token_ids"]] = False
        logits[:, barred] = -torch.inf
    if "bad_words" in more:
        tokenizer = engine.get_tokenizer()
        for word, blank in itertools.product(more["bad_words"], ("", " ")):
            *before, last = tokenizer.encode(blank + word, add_special_tokens=False)
            for i in range(len(logits)):
                if not before or tokens[max(i - len(before), 0) : i] == before:
                    logits[i, last] = -torch.inf
    if "min_tokens" in more:
        logits[: more["min_tokens"], engine.get_tokenizer().eos_token_id] = -torch.inf
    return logits


def log_probabilities(output: Any) -> list[float]:
    """Of each token of the output, under what it was drawn from."""
    one = output.outputs[0]
    return [steps[token].logprob for steps, token in zip(one.logprobs, one.token_ids, strict=True)]


def replayed(logits: Tensor, output: Any, extra: dict[str, Any], suppressed: list[int]) -> list[float]:
    """The log-probabilities of the output's tokens under the sampler alone."""
    profile, weight = aimed(HumanProfile.load(ASSET), extra.get("ugap_mode"), extra.get("ugap_weight"))
    own = extra.get("ugap_params")
    params = human_params(profile, extra.get("ugap_kind", "auto")) if own is None else json.loads(own)
    sampler = HumanSampler.of(params, weight, suppress_tokens=suppressed)
    state, values = State.start([len(output.prompt_token_ids)]), []
    for row, token in zip(logits, output.outputs[0].token_ids, strict=True):
        step = sampler.step(row.unsqueeze(0), state)
        values.append(float(step.scores(row.unsqueeze(0)).log_softmax(-1)[0, token]))
        state = sampler.observe(state, step, step.surprisal_of(torch.tensor([token])))
    return values


class TestLoaders:
    def test_v1(self):
        module = pytest.importorskip("vllm.v1.sample.logits_processor")
        assert module._load_logitsprocs_by_fqcns([NAME]) == [HumanEntropyProcessor]
        interface = {name for name in vars(module.LogitsProcessor) if not name.startswith("_")}
        assert interface == {"validate_params", "apply", "is_argmax_invariant", "update_state"}
        assert interface - {"validate_params"} <= vars(ProcessorV1).keys()

    def test_v2(self):
        module = pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor.loader")
        assert module._load_v2_logitsprocs_by_fqcns([NAME]) == [HumanEntropyProcessor]
        interface = {name for name in vars(module.LogitsProcessor) if not name.startswith("_")}
        assert interface == {"validate_params", "add_request", "apply_staged_writes", "apply"}
        assert interface - {"validate_params"} <= vars(ProcessorV2).keys()
        given = {"device", "prompt_len", "prefill_len", "all_token_ids"}
        assert given <= module.LogitsProcRequestState.__dataclass_fields__.keys()
        interface = pytest.importorskip("vllm.v1.worker.gpu.sample.logits_processor.interface")
        used = {"idx_mapping_np", "input_ids", "seq_lens_upper_bound_np"}
        assert used <= interface.LogitsContext.__dataclass_fields__.keys()


class TestEngine:
    def test_requests_are_preempted(self, batch):
        assert len(batch.found) > 3
        assert None not in batch.found

    def test_ours_are_drawn_from_the_sampler(self, batch, engine, model):
        suppressed = suppressed_tokens(model[0], model[1], [])  # with ignore_eos no token ends a text
        worst = []
        for (extra, more), params, output in zip(batch.settings, batch.params, batch.outputs, strict=True):
            if not any(key.startswith("ugap_") for key in extra):
                continue
            tokens = list(output.outputs[0].token_ids)
            logits = masked(logits_of(model, output), more, engine, tokens, params)
            values = torch.tensor(replayed(logits, output, extra, suppressed))
            worst.append(float((values - torch.tensor(log_probabilities(output))).abs().max()))
        assert max(worst) < 1e-3

    def test_others_stay_as_they_are(self, batch, model):
        for (extra, more), output in zip(batch.settings, batch.outputs, strict=True):
            if any(key.startswith("ugap_") for key in extra):
                continue
            logits, tokens = logits_of(model, output), torch.tensor(output.outputs[0].token_ids)
            if "temperature" in more:
                assert tokens.tolist() == logits.argmax(-1).tolist()
            else:
                values = logits.log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
                torch.testing.assert_close(values, torch.tensor(log_probabilities(output)), rtol=0, atol=1e-3)

    def test_precise_is_greedy(self, engine):
        precise = vllm.SamplingParams(**NEUTRAL, extra_args={"ugap_mode": "precise"})
        greedy = vllm.SamplingParams(**{**NEUTRAL, "temperature": 0.0})
        ours, others = (engine.generate(list(PROMPTS), one, use_tqdm=False) for one in (precise, greedy))
        assert [one.outputs[0].token_ids for one in ours] == [one.outputs[0].token_ids for one in others]

    def test_special_tokens_are_not_drawn(self, batch, model):
        barred = set(suppressed_tokens(model[0], model[1], []))
        for (extra, _), output in zip(batch.settings, batch.outputs, strict=True):
            if extra.get("ugap_mode") == "creative":
                assert not barred & set(output.outputs[0].token_ids)

    @pytest.mark.parametrize(
        ("extra", "more", "message"),
        [
            ({"ugap_mode": "wild"}, {}, "unknown mode 'wild'"),
            ({"ugap_kind": "sermons"}, {}, "sermons"),
            ({"ugap_mode": "creative"}, {"top_p": 0.9}, "needs top_p=1"),
            ({"ugap_mode": "creative"}, {"logit_bias": {5: 1.0}}, "logit_bias"),
        ],
    )
    def test_what_is_refused(self, engine, extra, more, message):
        # Over HTTP, vLLM answers this error with status 400 and its message.
        with pytest.raises(vllm.exceptions.VLLMValidationError, match=message):
            engine.generate("Once", vllm.SamplingParams(**{**NEUTRAL, **more}, extra_args=extra), use_tqdm=False)


class TestDecodings:
    @pytest.mark.parametrize(
        "name",
        [
            *("ancestral", "temperature-0.7", "top-p-0.9", "top-k-50", "min-p-0.1"),
            *("cut=temperature:1.2,top_k:40,top_p:0.8", "penalty=repetition_penalty:1.3,temperature:0.9,min_p:0.02"),
        ],
    )
    def test_draw_from_the_distribution_of_transformers(self, engine, model, name):
        (settings,) = parse_decodings([name]).values()
        params = vllm.SamplingParams(**{**NEUTRAL, **sampling_settings(settings)}, seed=1)
        config, processors = decoder(settings, model[0], None, generator=torch.Generator(), max_new_tokens=1)
        warpers = processors[:-1]  # the last one draws
        if config.repetition_penalty != 1:  # which generate() makes of its config
            warpers.insert(0, RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        for output in engine.generate(list(PROMPTS), params, use_tqdm=False):
            ids = torch.tensor([[*output.prompt_token_ids, *output.outputs[0].token_ids]])
            values = []
            for t, scores in enumerate(logits_of(model, output), start=len(output.prompt_token_ids)):
                row = scores.unsqueeze(0)
                for warper in warpers:
                    row = warper(ids[:, :t], row)
                values.append(float(row.log_softmax(-1)[0, ids[0, t]]))
            torch.testing.assert_close(values, log_probabilities(output), rtol=0, atol=2e-3)


class TestStudy:
    """`ugap measure` on both engines: the same human texts, greedy texts and, within their intervals, gaps."""

    def test_greedy_texts_are_the_same(self, studies):
        ours, others = studies["vllm"].texts, studies["transformers"].texts
        assert ours.keys() == others.keys()
        same = {key: ours[key] == others[key] for key in ours}
        assert all(is_same for (_, decoding), is_same in same.items() if decoding in ("human", "greedy"))
        assert not any(is_same for (_, decoding), is_same in same.items() if decoding == "ancestral")

    def test_gaps_are_within_their_intervals(self, studies):
        for key, row in studies["vllm"].gaps.items():
            other = studies["transformers"].gaps[key]
            low, high = row["ci95"]
            other_low, other_high = other["ci95"]
            assert low <= other_high
            assert other_low <= high


class TestServer:
    def test_a_mode_per_request(self, server):
        texts = {}
        for mode in ("precise", "creative", None):
            more = {"temperature": 0} if mode is None else {"vllm_xargs": {"ugap_mode": mode}}
            status, answer = server.ask(**more, seed=1)
            assert status == 200
            texts[mode] = json.loads(answer)["choices"][0]["text"]
        assert texts["precise"] == texts[None] != texts["creative"]

    def test_streaming(self, server):
        status, answer = server.ask(vllm_xargs={"ugap_mode": "creative"}, stream=True, ignore_eos=True)
        assert status == 200
        assert answer.count("data: {") >= 8
        assert answer.rstrip().endswith("data: [DONE]")

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ({"vllm_xargs": {"ugap_mode": "wild"}}, "unknown mode 'wild': choose of creative, balanced, precise"),
            ({"vllm_xargs": {"ugap_mode": ["creative"]}}, "ugap_mode: expected a text, got ['creative']"),
            ({"vllm_xargs": {"ugap_kind": "story"}, "temperature": 0.7}, "needs temperature=1"),
        ],
    )
    def test_bad_values(self, server, body, message):
        status, answer = server.ask(**body)
        assert status == 400
        assert message in json.loads(answer)["error"]["message"]

    def test_a_trainer_completes_prompts_with_it(self, server, model, monkeypatch):
        from accelerate import Accelerator
        from trl.generation.vllm_client import VLLMClient
        from trl.generation.vllm_generation import VLLMGeneration

        from ugap.training.vllm_rollouts import Request, complete, server_fault

        monkeypatch.setattr(VLLMClient, "init_communicator", lambda *_, **__: None)  # which carries weights, by NCCL
        backend = VLLMGeneration(
            model[0],
            Accelerator(cpu=True),
            model[1],
            mode="server",
            server_base_url=server.url,
            temperature=0.7,
            max_completion_length=8,
        )
        assert server_fault(backend.vllm_client.get_server_info()) is None
        prompts = [model[1](text).input_ids for text in PROMPTS[:2]]
        level = {"ugap_params": json.dumps(STORY), "ugap_weight": 0.8}
        plain, human = {"ignore_eos": True, "seed": 1}, {"temperature": 1.0, "extra_args": level}
        requests = [Request(prompts[0], plain)] * 2 + [Request(prompts[1], {**plain, **human})] * 2
        ids, logprobs = complete(backend, requests, 2)
        assert ids[0] != ids[1]
        assert ids[2] != ids[3]
        suppressed = suppressed_tokens(model[0], model[1], [])
        for request, tokens, values in zip(requests, ids, logprobs, strict=True):
            output = SimpleNamespace(prompt_token_ids=list(request), outputs=[SimpleNamespace(token_ids=tokens)])
            logits = logits_of(model, output)
            if "extra_args" in request.params:
                expected = torch.tensor(replayed(logits, output, level, suppressed))
            else:
                drawn = torch.tensor(tokens).unsqueeze(1)
                expected = (logits / 0.7).log_softmax(-1).gather(1, drawn).squeeze(1)
            torch.testing.assert_close(torch.tensor(values), expected, rtol=0, atol=2e-3)
