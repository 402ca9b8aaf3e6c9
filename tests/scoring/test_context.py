"""Which texts may run together: whatever stands beside a text, it has the scores of the model's own forward pass."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MllamaForCausalLM,
    MptConfig,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    Phi3Config,
    Phi3ForCausalLM,
    WhisperConfig,
    XLNetConfig,
)
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from ugap.errors import InputError
from ugap.models.fingerprint import weight_hash
from ugap.scoring import Scorer
from ugap.scoring.context import context_limit

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPE |= {"intermediate_size": 48, "initializer_range": 0.3}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
PREFIX = "Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton. "
TEXTS = ["The youngest went into the forest.", "He gave the old man a piece of his cake, and a cup of milk."]


def build(kind, config):
    torch.manual_seed(0)
    return kind(config).eval().requires_grad_(False)


def openai_gpt(n):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    return build(OpenAIGPTLMHeadModel, OpenAIGPTConfig(vocab_size=n, **sizes, initializer_range=0.3))


def mamba(n):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
    return build(MambaForCausalLM, MambaConfig(vocab_size=n, **sizes))


def falcon_mamba(n):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
    return build(FalconMambaForCausalLM, FalconMambaConfig(vocab_size=n, **sizes))


def lfm2(n):
    layers = ["conv", "full_attention"]
    return build(Lfm2ForCausalLM, Lfm2Config(vocab_size=n, **{**SHAPE, **NO_TOKENS}, layer_types=layers))


def llama(n):
    return build(LlamaForCausalLM, LlamaConfig(vocab_size=n, **SHAPE, **NO_TOKENS))


def phi3(n):
    factors = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 10_000.0, **factors, "original_max_position_embeddings": 40}
    positions = {"max_position_embeddings": 512, "original_max_position_embeddings": 40}
    return build(Phi3ForCausalLM, Phi3Config(vocab_size=n, **SHAPE, **NO_TOKENS, **positions, rope_parameters=rope))


def dynamic(n):
    rope = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
    config = LlamaConfig(vocab_size=n, **SHAPE, **NO_TOKENS, max_position_embeddings=40, rope_parameters=rope)
    return build(LlamaForCausalLM, config)


def own_surprisal(model, scores, context):
    """Of the text's tokens, from the logits of the model's own forward pass over what comes before the last one."""
    ids = [*context, *scores.token_ids.tolist()]
    logits = model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0].detach().double()
    log_p = logits.log_softmax(-1)
    return np.array([-log_p[i - 1, ids[i]] for i in range(len(context), len(ids))])


@pytest.mark.parametrize("make", [openai_gpt, mamba, falcon_mamba, lfm2, llama, phi3])
def test_texts_after_one_prefix_have_the_scores_that_they_have_alone(make, tokenizer, caplog):
    model = make(len(tokenizer))
    with caplog.at_level(logging.DEBUG, "ugap.scoring.context"):
        scorer = Scorer(model, tokenizer, name="tiny")
    shared = make in (llama, phi3)  # an openai-gpt ignores a cache, recurrent layers cannot copy theirs
    said = [record.getMessage() for record in caplog.records if record.name == "ugap.scoring.context"]
    assert len(said) == (0 if shared else 1)
    assert all(line.startswith("tiny: each text runs its prefix anew") for line in said)
    context = tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
    assert len(context) > 16
    for scores in scorer.score(TEXTS, [context] * 2):
        np.testing.assert_allclose(scores.surprisal, own_surprisal(model, scores, context), atol=1e-4)


@pytest.mark.parametrize("make", [phi3, dynamic])
def test_rotary_embeddings_that_depend_on_the_longest_row(make, tokenizer):
    """The score of a text depends neither on the texts beside it nor on those before it."""
    model = make(len(tokenizer))
    scorer = Scorer(model, tokenizer, max_length=512)
    words = ["the", "old", "man", "said", "to", "the", "youngest", "give", "me", "a", "piece", "of", "your", "cake"]
    texts = [" ".join((words * 9)[:n]) for n in (12, 14, 90, 30, 20, 60)]
    texts += [TEXTS[0]]
    alone = [scorer.score([text])[0] for text in texts]
    lengths = [len(scores.token_ids) for scores in alone]
    assert min(lengths) < 40 < max(lengths)
    for order in (texts, texts[::-1]):
        by_text = dict(zip(order, scorer.score(order), strict=True))
        for text, expected in zip(texts, alone, strict=True):
            np.testing.assert_allclose(by_text[text].surprisal, expected.surprisal, atol=1e-4)
    for scores in (alone[0], alone[3]):
        expected = own_surprisal(make(len(tokenizer)), scores, [tokenizer.bos_token_id])
        np.testing.assert_allclose(scores.surprisal, expected, atol=1e-4)
    # Short and long texts after one prefix, which ends before the switch.
    context = tokenizer(PREFIX, add_special_tokens=False)["input_ids"][:20]
    together = scorer.score(texts, [context] * len(texts))
    for scores in together:
        expected = own_surprisal(make(len(tokenizer)), scores, context)
        np.testing.assert_allclose(scores.surprisal, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (MptConfig(max_seq_len=77), 77),
        (WhisperConfig(max_target_positions=78), 78),
        (GPT2Config(n_positions=79), 79),
        (OpenAIGPTConfig(n_positions=80), 80),
        (XLNetConfig(), 2**31),
        (MambaConfig(), 2**31),
        (LlamaConfig(max_position_embeddings=81), 81),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_context_limit_goes_by_many_names(config, limit):
    assert context_limit(config) == limit


def test_a_model_with_adapters_is_scored_as_adapted(tokenizer):
    base = llama(len(tokenizer))
    plain = Scorer(base, tokenizer, name="tiny")
    (before,) = plain.score([TEXTS[0]])
    peft = get_peft_model(
        llama(len(tokenizer)), LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    scorer = Scorer(peft.eval(), tokenizer, name="tiny")
    (after,) = scorer.score([TEXTS[0]])
    expected = own_surprisal(peft, after, [tokenizer.bos_token_id])
    np.testing.assert_allclose(after.surprisal, expected, atol=1e-4)
    assert np.abs(after.surprisal - before.surprisal).max() > 0.1
    assert scorer.id != plain.id
    assert weight_hash(peft.get_base_model()) == plain.id.weight_hash


def test_an_adapter_that_adds_a_prompt_is_refused(tokenizer):
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft = get_peft_model(llama(len(tokenizer)), config)
    with pytest.raises(InputError, match="tiny: its adapter adds a prompt"):
        Scorer(peft, tokenizer, name="tiny")


def test_dropout_is_named(tokenizer):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "resid_pdrop": 0.5}
    model = build(GPT2LMHeadModel, GPT2Config(vocab_size=len(tokenizer), **sizes, initializer_range=0.3)).train()
    with pytest.raises(InputError, match=r"tiny: the model is in training mode, where dropout .*: call eval\(\)"):
        Scorer(model, tokenizer, name="tiny")


def test_a_text_part_of_a_multimodal_model_has_a_head(tokenizer):
    n, sizes = len(tokenizer), {**SHAPE, **NO_TOKENS}
    llama4 = {"intermediate_size_mlp": 48, "num_local_experts": 2, "head_dim": 8, "max_position_embeddings": 512}
    mllama = {"cross_attention_layers": [], "max_position_embeddings": 512, "bos_token_id": 0, "pad_token_id": 0}
    for model in (
        build(Llama4ForCausalLM, Llama4TextConfig(vocab_size=n, **sizes, **llama4)),
        build(MllamaForCausalLM, MllamaTextConfig(vocab_size=n, **{**sizes, **mllama})),
    ):
        (scores,) = Scorer(model, tokenizer).score([TEXTS[0]])
        expected = own_surprisal(model, scores, [tokenizer.bos_token_id])
        np.testing.assert_allclose(scores.surprisal, expected, atol=1e-4)


def test_a_text_without_tokens_says_so(tokenizer, tiny_model):
    from tokenizers import normalizers

    eater = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token=tokenizer.bos_token)
    before = eater.backend_tokenizer.normalizer
    eater.backend_tokenizer.normalizer = normalizers.Replace("x", "")
    try:
        with pytest.raises(InputError, match="text 0: the tokenizer makes no token of the text"):
            Scorer(tiny_model, eater).score(["xxx"])
    finally:
        tokenizer.backend_tokenizer.normalizer = before
