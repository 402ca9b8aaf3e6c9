"""Tokens that are never drawn: which these are, and that no adapter draws one, however likely the model finds it."""

import copy
import random
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AddedToken, GenerationConfig, PhiForCausalLM

from ugap.sampling import generation_kwargs
from ugap.sampling.engines.llama_cpp import completion_kwargs
from ugap.sampling.engines.vllm import (
    PROFILE_VARIABLE,
    HumanEntropyProcessor,
    Request,
    Requests,
)
from ugap.sampling.export import export_custom_generate
from ugap.sampling.generation import generate
from ugap.sampling.portable.special import suppressed_tokens, unwritable_tokens

IDS = torch.tensor([[2, 5, 300, 17], [2, 8, 9, 10]])
PADDED = 8  # columns of the logits beyond the tokenizer's tokens
NEW = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 12, "pad_token_id": 1}


@pytest.fixture(scope="module")
def special_tokenizer(tokenizer):
    """With a special token that has no name (400), as `<start_of_image>` of Gemma, and a plain added one (401)."""
    own = copy.deepcopy(tokenizer)
    own.add_tokens([AddedToken("<image>", special=True), AddedToken("plainly", special=False)])
    assert own.convert_tokens_to_ids(["<image>", "plainly"]) == [400, 401]
    assert 400 not in own.all_special_ids
    return own


@pytest.fixture(scope="module")
def suppress_tokens(special_tokenizer):
    """With token 1 as the end of a text."""
    return [0, 2, 400, *range(402, 402 + PADDED)]


@pytest.fixture(scope="module")
def model(make_model, special_tokenizer):
    """A model that hardly ever wants anything but tokens that are never drawn; at times the end of a text."""
    model = make_model("phi", vocab_size=len(special_tokenizer) + PADDED, eos_token_id=1)
    model.lm_head.bias.data[[0, 2, *range(400, 410)]] += 15
    model.lm_head.bias.data[401] -= 15
    return model


@pytest.fixture(scope="module")
def profile(make_profile, model):
    return make_profile(model)


@pytest.fixture(scope="module")
def home(model, special_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("special")
    model.save_pretrained(folder)
    special_tokenizer.save_pretrained(folder)
    return folder


class TestWhich:
    def test_special_tokens_without_a_name_and_ids_without_a_string(self, special_tokenizer, suppress_tokens):
        size = len(special_tokenizer) + PADDED
        assert unwritable_tokens(special_tokenizer, size, [1]) == suppress_tokens
        assert unwritable_tokens(special_tokenizer, size, [1, 400]) == [
            token for token in suppress_tokens if token != 400
        ]
        assert unwritable_tokens(special_tokenizer, 400, []) == [0, 1, 2]

    def test_control_tokens_that_are_not_marked(self, tokenizer):
        """As in the tokenizer of the shipped Gemma; what people write is added to it in the same way."""
        own = copy.deepcopy(tokenizer)
        control = ["<start_of_image>", "<end_of_turn>", "[multimodal]", "<|fim_prefix|>", "<｜begin▁of▁sentence｜>"]
        written = ["\n\n\n", "<table>", "</h1>", "<b>", "[", "\t\t", "plainly", "<think>"]
        own.add_tokens([AddedToken(text, special=False) for text in [*control, *written]])
        suppress_tokens = unwritable_tokens(own, len(own), [])
        assert [own.convert_ids_to_tokens(token) for token in suppress_tokens[3:]] == control

    def test_without_a_tokenizer_the_configs_tell(self, make_model):
        model = make_model("llama", bos_token_id=2, eos_token_id=[1, 7], pad_token_id=1)
        model.generation_config.decoder_start_token_id = 5
        assert suppressed_tokens(model) == [2, 5]
        assert suppressed_tokens(model, ends=2) == [1, 5, 7]

    def test_the_tokenizer_beside_the_model_is_found_without_the_network(self, home, suppress_tokens, monkeypatch):
        def refuse(*arguments, **options):
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        found = PhiForCausalLM.from_pretrained(home)
        assert suppressed_tokens(found) == suppress_tokens
        found.config.name_or_path = "nobody/no-such-model"
        assert suppressed_tokens(found) == []

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "count", "strings"),
        [
            ("gemma", 6251, ["<start_of_image>", "<end_of_image>", "[multimodal]", "<unused99>"]),
            ("smollm2", 16, ["<|im_start|>", "<|endoftext|>"]),
        ],
    )
    def test_of_the_real_models(self, request, name, count, strings):
        scorer = request.getfixturevalue(name)
        suppress_tokens = suppressed_tokens(scorer.model, scorer.tokenizer)
        assert len(suppress_tokens) == count
        assert set(scorer.tokenizer.convert_tokens_to_ids(strings)) <= set(suppress_tokens)
        assert not set(suppress_tokens) & set(
            scorer.tokenizer("Once upon a time\n\n", add_special_tokens=False)["input_ids"]
        )
        assert suppressed_tokens(scorer.model) == suppress_tokens


class TestNotDrawn:
    """The end of a text is drawn, here at will: so it is not what stands in the place of the others."""

    @pytest.mark.parametrize("mode", ["creative", "balanced"])
    def test_by_generate(self, model, special_tokenizer, profile, suppress_tokens, mode):
        texts = generate(model, special_tokenizer, ["Once", "A function"], profile=profile, mode=mode, seed=0)
        drawn = {token for one in texts for token in one.token_ids}
        assert len(drawn) > 3
        assert not drawn & set(suppress_tokens)

    def test_by_the_arguments(self, model, special_tokenizer, profile, suppress_tokens, home):
        for one, own in ((model, special_tokenizer), (PhiForCausalLM.from_pretrained(home), None)):
            options = generation_kwargs(one, profile=profile, tokenizer=own, seed=0)
            assert not set(one.generate(IDS, **NEW, **options)[:, 4:].flatten().tolist()) & set(suppress_tokens)

    def test_by_an_exported_folder(self, model, special_tokenizer, profile, suppress_tokens, home, tmp_path):
        folder = export_custom_generate(tmp_path / "export", profile)
        options = {**NEW, "custom_generate": str(folder), "trust_remote_code": True, "seed": 0}
        given = model.generate(IDS, **options, tokenizer=special_tokenizer)
        found = PhiForCausalLM.from_pretrained(home).generate(IDS, **options)
        assert given.tolist() == found.tolist()
        assert not set(given[:, 4:].flatten().tolist()) & set(suppress_tokens)
        # What ends a text may be said with the call.
        for ends in ({"eos_token_id": 400}, {"generation_config": GenerationConfig(eos_token_id=[400, 2])}):
            out = model.generate(IDS, **{**options, **ends}, tokenizer=special_tokenizer)
            assert set(out[:, 4:].flatten().tolist()) & set(suppress_tokens) <= {2, 400}
            assert (out == 400).any()

    def test_by_vllm(self, profile, home, suppress_tokens, model, monkeypatch, tmp_path):
        profile.save(tmp_path / "profile.json")
        monkeypatch.setenv(PROFILE_VARIABLE, str(tmp_path / "profile.json"))
        config = SimpleNamespace(
            speculative_config=None,
            parallel_config=SimpleNamespace(pipeline_parallel_size=1),
            scheduler_config=SimpleNamespace(max_num_seqs=4),
            model_config=SimpleNamespace(
                tokenizer=str(home),
                tokenizer_revision=None,
                trust_remote_code=False,
                skip_tokenizer_init=False,
                hf_config=model.config,
                get_vocab_size=lambda: 410,
            ),
        )
        states = SimpleNamespace(device=torch.device("cpu"), max_num_reqs=4)
        processors = (
            HumanEntropyProcessor(config, torch.device("cpu"), False),
            HumanEntropyProcessor(config, states),
        )
        for processor in processors:
            requests = processor._requests
            requests.start(0, Request("creative", 1.0, frozenset({1})))
            requests.start(1, Request("creative", 1.0, frozenset({1, 400})))
            assert self.drawable(requests, suppress_tokens) == [set(), {400}]
        config.model_config.skip_tokenizer_init = True
        without = HumanEntropyProcessor(config, torch.device("cpu"), False)._requests
        without.start(0, Request("creative", 1.0))
        without.start(1, Request("creative", 1.0, frozenset({1})))
        assert [1 in drawable for drawable in self.drawable(without, [1])] == [False, True]

    @staticmethod
    def drawable(requests: Requests, of: list[int]) -> list[set[int]]:
        logits = torch.randn(2, 410, generator=torch.Generator().manual_seed(0))
        logits[:, of] += 15
        scores = requests.apply(logits, [0, 1], [0, 1], torch.tensor([-1, -1]), torch.tensor([3, 3]))
        return [set(row.isfinite().nonzero().flatten().tolist()) & set(of) for row in scores]

    def test_by_llama_cpp(self, profile, suppress_tokens, monkeypatch):
        attributes = {
            **dict.fromkeys(range(410), 4),
            0: 8,
            1: 8,
            2: 1,
            400: 16,
            401: 16,
            **dict.fromkeys(range(402, 409), 2),
            409: 0,
        }
        fake = SimpleNamespace(
            LogitsProcessorList=list,
            StoppingCriteriaList=list,
            LLAMA_TOKEN_ATTR_UNDEFINED=0,
            LLAMA_TOKEN_ATTR_UNKNOWN=1,
            LLAMA_TOKEN_ATTR_UNUSED=2,
            LLAMA_TOKEN_ATTR_CONTROL=8,
            LLAMA_TOKEN_ATTR_USER_DEFINED=16,
            llama_model_get_vocab=lambda handle: f"vocabulary of {handle}",
            llama_vocab_get_attr=lambda vocab, token: attributes[token] if vocab == "vocabulary of it" else None,
            llama_vocab_get_text=lambda vocab, token: b"<start_of_image>" if token == 400 else b"<table>",
            llama_vocab_is_eog=lambda vocab, token: token == 1,
        )
        monkeypatch.setitem(sys.modules, "llama_cpp", fake)
        llama = SimpleNamespace(n_vocab=lambda: 410, model="it")
        (processor,) = completion_kwargs(llama, profile, seed=0)["logits_processor"]
        assert sorted(processor._sequence._suppress_tokens) == suppress_tokens
        rng, ids, drawn = random.Random(0), [2, 5, 9], set()
        for _ in range(30):
            scores = np.random.default_rng(rng.randrange(10**6)).normal(size=410).astype(np.float32)
            scores[[*suppress_tokens, 1]] += 15
            ids.append(int(processor(np.array(ids, dtype=np.intc), scores).argmax()))
            drawn.add(ids[-1])
        assert 1 in drawn
        assert not drawn & set(suppress_tokens)
