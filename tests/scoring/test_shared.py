"""The policy's base as the scorer: equal to a separate copy, and nothing of the policy is changed by it."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from ugap.errors import InputError
from ugap.scoring import Scorer, SharedScorer

TEXTS = ["Once upon a time there was a tailor.", "The youngest went into the forest, and the old man said."]


@pytest.fixture(params=["all-linear", ["q_proj", "lm_head"]], ids=["layers", "head"])
def policy(request, make_model):
    """A tiny Llama with an adapter that is far from nothing, and dropout, in training."""
    torch.manual_seed(0)
    adapted = get_peft_model(make_model("llama"), LoraConfig(target_modules=request.param, lora_dropout=0.5))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return adapted.train()


def test_equal_to_a_separate_copy_of_the_base(policy, make_model, tokenizer):
    shared, separate = SharedScorer(policy, tokenizer), Scorer(make_model("llama"), tokenizer)
    assert shared.id.weight_hash == separate.id.weight_hash
    prefixes = ["The old man"] * len(TEXTS)
    scores = [scorer.score(TEXTS, prefixes, pmi=True) for scorer in (shared, separate)]
    for ours, theirs in zip(*scores, strict=True):
        for name in ("surprisal", "entropy", "varentropy", "rank", "marginal_surprisal"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-5)


def test_the_policy_itself_is_another_model(policy, tokenizer):
    shared = SharedScorer(policy, tokenizer).score(TEXTS[:1])[0]
    own = Scorer(copy.deepcopy(policy).merge_and_unload().eval(), tokenizer).score(TEXTS[:1])[0]
    assert np.abs(shared.surprisal - own.surprisal).mean() > 0.05


def test_scoring_leaves_the_policy_as_it_was(policy, tokenizer):
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    scorer = SharedScorer(policy, tokenizer)
    scorer.score(TEXTS)
    assert policy.training
    assert all(module.training for module in policy.modules())
    assert policy.get_model_status().enabled is True
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_it_scores_with_the_base_while_the_adapter_is_trained(policy, tokenizer):
    scorer = SharedScorer(policy, tokenizer)
    before = scorer.score(TEXTS)[0].surprisal
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_A" in name:
                parameter += 1
    np.testing.assert_array_equal(scorer.score(TEXTS)[0].surprisal, before)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "adds a prompt"),
        (LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]), "replaces the output head"),
    ],
)
def test_an_adapter_that_has_no_base_to_share_is_refused(config, says, make_model, tokenizer):
    with pytest.raises(InputError, match=says):
        SharedScorer(get_peft_model(make_model("llama"), config), tokenizer, name="tiny")


@pytest.mark.slow
def test_the_real_model(smollm2):
    text = ["Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton."]
    before = smollm2.score(text)[0]
    policy = get_peft_model(copy.deepcopy(smollm2.model), LoraConfig(target_modules="all-linear"))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    shared = SharedScorer(policy.train(), smollm2.tokenizer)
    assert shared.id.weight_hash == smollm2.id.weight_hash
    np.testing.assert_allclose(shared.score(text)[0].surprisal, before.surprisal, rtol=0, atol=1e-5)
