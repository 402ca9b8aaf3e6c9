"""What a prompt tells the sampler: against the scorer, and for rows of different prompts side by side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    OpenAIGPTConfig,
    PreTrainedConfig,
    RwkvConfig,
    XLMConfig,
    XLMWithLMHeadModel,
)

from ugap.profile import HumanProfile, PromptModel
from ugap.profile.positions import BANDS
from ugap.sampling import HumanEntropyLogitsProcessor, generate
from ugap.sampling.prompts import MOST_TOKENS, PromptParams, read_prompt


@pytest.fixture
def reading_profile(profile) -> HumanProfile:
    """The profile of the tiny model, in which the level after a prompt is the mean surprisal of the prompt."""
    n = len(BANDS) + 1
    # The moments of prompts whose mean features are the same but for the surprisal, with a wide spread around them.
    means = np.array([[1, 5.0, 5.0, 5.0, 5.0], [1, 6.0, 6.0, 5.0, 5.0]])
    gram = means[:, :, None] * means[:, None, :] + 1e3 * np.diag([0.0, 1, 1, 1, 1])
    model = PromptModel(
        kinds=("creative", "functional"),
        gram=np.array([gram] * 2),
        cross=np.array([gram @ [0.0, 0.5, 0.5, 0.0, 0.0]] * 2),
        lengths=np.array([16.0, 64.0]),
        kind_deviation=np.ones(2),
        covariance=np.array([np.eye(4)] * 2),
        ratios=np.ones((2, n)),
        tokens=np.empty(0),
        counts=np.ones((2, 1)),
    )
    return replace(profile, prompt=model)


def test_a_prompt_is_read_as_the_scorer_reads_it(tiny_model, tokenizer, reference):
    ids = [tokenizer.bos_token_id, *torch.randint(3, 390, (40,), generator=torch.Generator().manual_seed(0)).tolist()]
    surprisal, entropy = read_prompt(tiny_model, ids)
    expected_surprisal, expected_entropy, *_ = reference(tiny_model, ids[:1], ids[1:])
    assert np.isnan([surprisal[0], entropy[0]]).all()
    np.testing.assert_allclose(surprisal[1:], expected_surprisal, atol=2e-4)
    np.testing.assert_allclose(entropy[1:], expected_entropy, atol=2e-4)


def test_of_a_long_prompt_the_end_is_read(tiny_model):
    ids = torch.randint(3, 390, (MOST_TOKENS + 20,), generator=torch.Generator().manual_seed(0)).tolist()
    surprisal, entropy = read_prompt(tiny_model, ids)
    for values in (surprisal, entropy):
        assert np.isnan(values[:20]).all()
        assert np.isfinite(values[20:]).all()


@pytest.mark.parametrize("kind", ["gpt2", "openai-gpt", "rwkv", "xlm"])
def test_a_prompt_is_read_whatever_the_architecture_takes(kind):
    """Some take no `logits_to_keep`, and some no `use_cache`."""
    size = {"vocab_size": 400}
    configs: dict[str, PreTrainedConfig] = {
        "gpt2": GPT2Config(n_embd=16, n_layer=2, n_head=2, **size),
        "openai-gpt": OpenAIGPTConfig(n_embd=16, n_layer=2, n_head=2, **size),
        "rwkv": RwkvConfig(hidden_size=16, num_hidden_layers=2, **size),
        "xlm": XLMConfig(n_words=400, emb_dim=16, n_layers=2, n_heads=2, causal=True, asm=False),
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(configs[kind]) if kind != "xlm" else XLMWithLMHeadModel(configs[kind])
    ids = torch.randint(5, 390, (24,)).tolist()
    surprisal, entropy = read_prompt(model.eval(), ids)
    log_p = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1).detach()
    np.testing.assert_allclose(surprisal[1:], -log_p[range(23), ids[1:]], atol=2e-4)
    np.testing.assert_allclose(entropy[1:], -(log_p.exp() * log_p).sum(-1), atol=2e-4)


class TestPromptParams:
    def test_the_level_is_that_of_the_prompt(self, reading_profile, tiny_model, tokenizer):
        prompts = PromptParams(reading_profile, model=tiny_model, special=[tokenizer.bos_token_id])
        ids = [
            tokenizer.bos_token_id,
            *torch.randint(3, 390, (60,), generator=torch.Generator().manual_seed(0)).tolist(),
        ]
        surprisal, _ = read_prompt(tiny_model, ids)
        target = prompts.target(ids)
        assert target.mean_surprisal == pytest.approx(surprisal[5:].mean(), rel=0.02)
        assert target.position == 60
        params = prompts(ids)
        assert params["mean_surprisal"][3] == pytest.approx(target.mean_surprisal, rel=0.02)
        # A named kind, a chat, a short prompt, and a prompt whose words tell nothing to no model, are not moved.
        cases: list[tuple[dict, list[int]]] = [
            ({"kind": "functional", "model": tiny_model}, ids),
            ({"model": tiny_model, "special": [ids[7]]}, ids),
            ({"model": tiny_model}, ids[:12]),
            ({}, ids),
        ]
        for options, prompt in cases:
            assert PromptParams(reading_profile, **options).target(prompt).factor == 1
        told = replace(
            reading_profile.prompt,
            tokens=np.unique(ids[1:]).astype(float),
            counts=np.array([[1.0] * len(set(ids[1:])) + [5000.0], [50.0] * len(set(ids[1:])) + [1.0]]),
            cross=reading_profile.prompt.cross * [[[1.0], [0.1]]],
        )
        by_words = PromptParams(replace(reading_profile, prompt=told), special=[ids[7]])
        assert by_words.target(ids).factor == 1
        by_words = PromptParams(replace(reading_profile, prompt=told))
        assert by_words.target(ids).weights == {"functional": 1.0}
        assert by_words.target(ids).mean_surprisal == pytest.approx(0.6)
        other = PromptParams(reading_profile, model=tiny_model, otherwise="functional").target(ids[:12])
        assert other.weights == {"functional": 1.0}

    def test_prompts_are_not_remembered_without_end(self, reading_profile, monkeypatch):
        monkeypatch.setattr("ugap.sampling.prompts._MOST_TARGETS", 4)
        prompts = PromptParams(reading_profile, "creative")
        targets = [prompts.target([1] * n) for n in (3, 70, 3, 9, 10, 11, 12)]
        assert [target.position for target in targets] == [3, 70, 3, 9, 10, 11, 12]
        assert len(prompts._targets) <= 4
        assert all(target.kind is targets[0].kind for target in targets)
        assert targets[1].mean_surprisal == reading_profile.target("creative", position=70).mean_surprisal

    def test_a_prompt_unlike_all_human_text_is_warned_of_once(self, reading_profile, tiny_model, caplog):
        prompts = PromptParams(reading_profile, model=tiny_model)
        strange = replace(reading_profile.prompt, covariance=reading_profile.prompt.covariance * 1e-4)
        prompts.profile = replace(reading_profile, prompt=strange)
        ids = torch.randint(3, 390, (60,), generator=torch.Generator().manual_seed(0)).tolist()
        for _ in range(2):
            prompts(ids)
        assert [record.message for record in caplog.records] == [
            "a prompt is unlike every kind of text that the human profile knows: its level is a guess"
        ]


def test_prompts_of_a_batch_are_written_each_at_its_own_level(reading_profile, tiny_model, tokenizer):
    """What a prompt gets in a batch, padded on its left, is what it gets alone."""
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 390, (n,), generator=rng).tolist() for n in (70, 20, 6)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    ids = torch.tensor([[pad] * (70 - len(row)) + row for row in rows])
    scores = torch.randn(3, len(tokenizer), generator=rng) * 2

    def processor():
        return HumanEntropyLogitsProcessor(reading_profile, pad_token_id=pad, model=tiny_model, tail=None)

    together = processor()(ids, scores)
    for i, row in enumerate(rows):
        alone = processor()(torch.tensor([row]), scores[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    levels = [processor().prompts.target(row).mean_surprisal for row in rows]
    assert len({round(level, 3) for level in levels}) == 3


def test_generate_says_what_each_text_was_to_be_like(reading_profile, tiny_model, tokenizer):
    words = "Once upon a time there was an old tailor who had three sons and they went into the forest. " * 2
    long, short = generate(
        tiny_model, tokenizer, [words, "Once"], profile=reading_profile, max_new_tokens=4, seed=0, weight=0.5
    )
    assert long.target.factor != 1
    assert short.target.factor == 1
    assert str(long.target).startswith("kind: ")
    assert long.human_level == pytest.approx(long.target.mean_surprisal, rel=0.05)
