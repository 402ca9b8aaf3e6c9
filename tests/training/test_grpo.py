"""The GRPO trainer: advantages by domain, the entropy term, the constraint's effect on gradients, and refusals."""

import copy
import math

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, get_peft_model

from ugap.errors import InputError
from ugap.scoring import Scorer, SharedScorer
from ugap.training import (
    FactualityReward,
    SampledRollouts,
    UncertaintyGRPOConfig,
    UncertaintyGRPOTrainer,
    UncertaintyReward,
)
from ugap.training.grpo import weighted_advantages


def length_reward(completions, **_):
    return [float(len(text) % 5) for text in completions]


def lucky_reward(completions, domain, **_):
    """A factual reward that varies within a group, whatever a random model says."""
    return [float(len(text) % 2) if d == "functional" else None for text, d in zip(completions, domain, strict=True)]


class Lucky(FactualityReward):
    def __call__(self, prompts, completions, completion_ids=None, *, domain=None, **_):
        return lucky_reward(completions, domain)


@pytest.fixture
def make_trainer(base_model, own_tokenizer, prompts, human_profile, tmp_path):
    """`make_trainer(rewards=None, data=prompts, full=False, **config)`: a trainer of a tiny model."""

    def make(
        rewards=None, data=prompts, full=False, trainer=UncertaintyGRPOTrainer, eval_dataset=None, model=None, **config
    ):
        settings = {
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 12,
            "logging_steps": 1,
            "save_strategy": "no",
            "learning_rate": 1e-2,
            "disable_tqdm": True,
            "gradient_checkpointing": False,
            "shuffle_dataset": False,
            "top_k": 0,
            **config,
        }
        rewards = [UncertaintyReward(human_profile), Lucky()] if rewards is None else rewards
        return trainer(
            base_model() if model is None else model,
            rewards,
            UncertaintyGRPOConfig(str(tmp_path / "run"), **settings),
            train_dataset=data,
            eval_dataset=eval_dataset,
            processing_class=own_tokenizer,
            peft_config=None if full else LoraConfig(target_modules="all-linear", r=4),
            rollout_func=SampledRollouts(seed=0),
        )

    return make


def scored_batch(trainer):
    """One batch of completions with advantages, and the rows that it was made of."""
    trainer.model.train()
    rows = [row for row in list(trainer.train_dataset)[:2] for _ in range(4)]
    return trainer._generate_and_score_completions(rows), rows


def gradient(trainer, batch):
    trainer.model.zero_grad()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, batch).backward()
    parts = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in trainer.model.parameters()]
    return torch.cat([part for part, p in zip(parts, trainer.model.parameters(), strict=True) if p.requires_grad])


def test_a_few_steps_move_the_policy_and_log_what_they_should(make_trainer):
    trainer = make_trainer(max_steps=3, constraint_limit=0.3, constraint_warmup=0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    first = trainer.state.log_history[0]
    for name in (
        "rewards/uncertainty_reward/mean",
        "rewards/uncertainty_reward/nan",
        "entropy/creative",
        "entropy/creative_target",
        "entropy/functional",
        "entropy/functional_target",
        "constraint/factuality/cost",
        "constraint/factuality/lambda",
    ):
        assert math.isfinite(first[name])
    # The policy is its base before the first step.
    assert first["entropy/functional"] == pytest.approx(first["entropy/functional_target"], abs=1e-4)


def test_the_reward_shares_the_base(make_trainer):
    trainer = make_trainer()
    assert isinstance(trainer.uncertainty.first.scorer, SharedScorer)
    assert trainer.uncertainty.first.scorer.policy is trainer.model


def test_advantages_are_weighted_after_they_are_scaled():
    torch.manual_seed(0)
    rewards = torch.rand(12, 2)
    rewards[:8, 1] = torch.nan
    rewards[8:, 0] = torch.nan
    rewards[3] = torch.nan
    one = weighted_advantages(rewards, torch.tensor([1.0, 1.0]), 4)
    two = weighted_advantages(rewards, torch.tensor([1.0, 2.0]), 4)
    torch.testing.assert_close(two[:8], one[:8])
    torch.testing.assert_close(two[8:], 2 * one[8:])
    assert one[3] == 0
    groups = [rewards[[0, 1, 2], 0], rewards[4:8, 0]]
    centred = [group - group.mean() for group in groups]
    # One scale for both groups: a group of nearly equal rewards is not blown up.
    scale = ((centred[0] ** 2).sum() + (centred[1] ** 2).sum()).div(2 + 3).sqrt() + 1e-4
    torch.testing.assert_close(one[:3], centred[0] / scale)
    torch.testing.assert_close(one[4:8], centred[1] / scale)
    own = weighted_advantages(rewards, torch.tensor([1.0, 1.0]), 4, scale="group")
    torch.testing.assert_close(own[4:8], centred[1] / (groups[1].std() + 1e-4))
    plain = weighted_advantages(rewards, torch.tensor([1.0, 1.0]), 4, scale="none")
    torch.testing.assert_close(plain[4:8], centred[1])


def test_twice_the_multiplier_is_twice_the_functional_part(make_trainer):
    """On gradients: what lambda adds to those of the creative rows is in proportion to it."""
    config = {"target_entropy_coef": 0.0, "constraint_limit": 0.3, "loss_type": "grpo"}

    def gradients(multiplier):
        trainer = make_trainer(constraint_initial=multiplier, **config)
        batch, rows = scored_batch(trainer)
        functional = torch.tensor([row["domain"] == "functional" for row in rows])
        whole = gradient(trainer, batch)
        creative = gradient(trainer, {**batch, "advantages": batch["advantages"] * ~functional})
        return whole, creative

    one, creative_one = gradients(1.0)
    two, creative_two = gradients(2.0)
    torch.testing.assert_close(creative_two, creative_one)
    torch.testing.assert_close(two - creative_two, 2 * (one - creative_one), rtol=1e-4, atol=1e-7)
    assert (one - creative_one).norm() > 1e-4


def test_trl_alone_would_give_the_multiplier_no_such_effect(make_trainer):
    """The batch is normalised after the weighting there: the functional part does not double."""
    trainer = make_trainer(constraint_limit=0.3)
    kept = {}
    for weight in (1.0, 2.0):
        trainer.reward_weights[1] = weight
        rewards = torch.tensor([[0.0, torch.nan], [1.0, torch.nan]] * 2 + [[torch.nan, 0.0], [torch.nan, 1.0]] * 2)
        normalised = weighted_advantages(rewards, trainer.reward_weights, 4)
        kept[weight] = ((normalised - normalised.mean()) / normalised.std())[4:]
    assert (kept[2.0] / kept[1.0]).abs().max() < 1.7


def test_the_entropy_term_is_two_sided_and_differentiable(make_trainer):
    trainer = make_trainer(target_entropy_coef=2.0)
    batch, _ = scored_batch(trainer)
    still = {**batch, "advantages": batch["advantages"] * 0}
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1

    def entropy_after(shift):
        """The policy's entropy after one step of descent on the term alone, with targets moved by `shift`."""
        trainer.model.zero_grad()
        with torch.no_grad():
            entropy = trainer._get_per_token_logps_and_entropies(*inputs(batch), compute_entropy=True)[1]
        mask = batch["completion_mask"]
        own = (entropy * mask).sum(1) / mask.sum(1)
        loss = trainer._compute_loss(trainer.model, {**still, "entropy_target": own + shift})
        assert loss.item() == pytest.approx(2.0 * shift**2, rel=1e-3)
        loss.backward()
        with torch.no_grad():
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
            moved = trainer._get_per_token_logps_and_entropies(*inputs(batch), compute_entropy=True)[1]
            for parameter in trainer.model.parameters():
                if parameter.grad is not None:
                    parameter += 0.05 * parameter.grad
        return ((moved - entropy) * mask).sum().item()

    def inputs(batch):
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        return trainer.model, ids, mask, batch["completion_ids"].shape[1]

    assert entropy_after(0.3) > 0
    assert entropy_after(-0.3) < 0


def test_functional_rows_are_held_near_the_base_and_creative_ones_are_free(make_trainer):
    trainer = make_trainer(target_entropy_coef=0.0, functional_beta=2.0)
    batch, rows = scored_batch(trainer)
    functional = torch.tensor([row["domain"] == "functional" for row in rows])
    assert batch["base_logps"][functional].isfinite().all()
    assert batch["base_logps"][~functional].isnan().all()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    # A new adapter changes nothing: the policy is its base.
    still = {**batch, "advantages": batch["advantages"] * 0}
    assert trainer._compute_loss(trainer.model, still).item() == pytest.approx(0, abs=1e-6)
    mask = batch["completion_mask"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    whole = torch.cat([batch["prompt_mask"], mask], 1)
    with torch.no_grad():
        logps = trainer._get_per_token_logps_and_entropies(trainer.model, ids, whole, mask.shape[1])[0]
    shift = torch.linspace(-0.5, 0.5, mask.shape[1]).expand_as(logps)
    base = torch.where(functional.unsqueeze(1), logps + shift, torch.nan)
    trainer._sums.clear()
    loss = trainer._compute_loss(trainer.model, {**still, "base_logps": base})
    own = mask.bool() & functional.unsqueeze(1)
    expected = (shift.exp() - 1 - shift)[own].mean().item()
    assert loss.item() == pytest.approx(2.0 * expected, rel=1e-4)
    assert logged(trainer, "functional/kl") == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in trainer.model.parameters() if parameter.grad is not None)


@pytest.mark.parametrize(
    ("tied", "adapter"),
    [
        (False, {"modules_to_save": ["lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    ],
)
def test_the_base_has_its_own_head_and_no_dropout(tied, adapter, make_trainer, make_model):
    config = {"initializer_range": 0.15, "tie_word_embeddings": tied, "attention_dropout": 0.5}
    base = make_model("llama", **config).eval()
    lora = LoraConfig(target_modules=["q_proj"], r=4, lora_dropout=0.5, **adapter)
    policy = get_peft_model(copy.deepcopy(base), lora)
    trainer = make_trainer(
        rewards=[length_reward, Lucky()], full=True, model=policy, functional_beta=1.0, target_entropy_coef=0.0
    )
    batch, _ = scored_batch(trainer)
    still = {**batch, "advantages": batch["advantages"] * 0}
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    assert trainer._compute_loss(trainer.model, still).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = base(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].shape[1] - 1 : -1]
    expected = logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    own = batch["completion_mask"].bool() & ~batch["creative"].unsqueeze(1)
    again = trainer._base_on_functional(trainer.step, batch)[0]
    torch.testing.assert_close(again[own], expected[own], rtol=1e-4, atol=1e-4)


def test_tokens_that_are_trained_in_the_head_are_refused(make_trainer, make_model):
    model = make_model("llama", tie_word_embeddings=True)
    policy = get_peft_model(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6]))
    with pytest.raises(InputError, match="trainable_token_indices reach the output head"):
        make_trainer(rewards=[length_reward, Lucky()], full=True, model=policy, target_entropy_coef=0.0)


def logged(trainer, name):
    total, count = trainer._sums["train"][name]
    return float(total / count)


def scorer_nlls(trainer, batch):
    compared = batch["completion_mask"].bool() & (batch["completion_ids"] != trainer.processing_class.eos_token_id)
    return trainer._scorer_nlls(trainer.step, batch, compared)


def own_nll(trainer, batch):
    """The policy's mean surprisal `(B,)` of the completions, end tokens left out."""
    mask = batch["completion_mask"]
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    whole = torch.cat([batch["prompt_mask"], mask], 1)
    with torch.no_grad():
        logps = trainer._get_per_token_logps_and_entropies(trainer.model, ids, whole, mask.shape[1])[0]
    counted = mask * (batch["completion_ids"] != trainer.processing_class.eos_token_id)
    return -(logps * counted).sum(1) / counted.sum(1)


def answering(completions):
    """Rollouts that say one thing after another."""

    def roll(prompts, trainer):
        said = [completions[i % len(completions)] for i in range(len(prompts))]
        return {"prompt_ids": trainer._tokenize_prompts(prompts)[0], "completion_ids": said, "logprobs": None}

    return roll


@pytest.mark.parametrize("length", [1, 2, 6])
def test_a_policy_that_is_the_scorer_has_no_divergence(length, make_trainer, tokenizer):
    """With an end token behind short answers, and with tokens that their text would not be cut to again."""
    trainer = make_trainer(target_entropy_coef=1.0)
    trainer.rollout_func = answering(
        [[*[17 + i, 40, 41, 42, 43, 44][:length], tokenizer.eos_token_id] for i in range(4)]
    )
    scored_batch(trainer)
    assert logged(trainer, "entropy/divergence") == pytest.approx(0, abs=1e-5)


def test_masked_completions_are_left_out_of_the_divergence(make_trainer, tokenizer):
    trainer = make_trainer(target_entropy_coef=1.0, mask_truncated_completions=True)
    trainer.rollout_func = answering([[17, 40, 41, tokenizer.eos_token_id], [18, 50, 51, 52]])
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    batch, _ = scored_batch(trainer)
    whole = batch["completion_mask"].any(1)
    assert whole.tolist() == [True, False] * 4
    counted, nlls = whole & batch["creative"], scorer_nlls(trainer, batch)
    expected = (nlls - own_nll(trainer, batch))[counted].mean().item()
    assert abs(expected) > 0.01
    assert logged(trainer, "entropy/divergence") == pytest.approx(expected, abs=1e-5)
    assert nlls[~counted].isnan().all()


def test_a_scorer_of_other_tokens_compares_means_of_its_own(make_trainer, human_profile, base_model, tokenizer):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<another>"])
    reward = UncertaintyReward(human_profile, Scorer(base_model().eval(), other, name="tiny"))
    trainer = make_trainer(rewards=[reward, Lucky()], target_entropy_coef=1.0)
    batch, rows = scored_batch(trainer)
    said = trainer.processing_class.batch_decode(batch["completion_ids"], True)
    told = [one.judged[0].nll for one in reward.judge([row["prompt"] for row in rows], said)]
    assert scorer_nlls(trainer, batch)[batch["creative"]].tolist() == pytest.approx(told[:4], rel=1e-4)


def test_a_policy_that_has_left_the_scorer_aims_lower(make_trainer, monkeypatch):
    """By the divergence: its text is that much more surprising to the scorer than the policy is uncertain."""
    trainer = make_trainer(target_entropy_coef=1.0)
    batch, rows = scored_batch(trainer)
    creative = torch.tensor([row["domain"] == "creative" for row in rows])
    own, nlls = own_nll(trainer, batch), scorer_nlls(trainer, batch)
    # The adapter is new: the policy is its base, and the scorer is that base.
    torch.testing.assert_close(nlls[creative], own[creative], rtol=1e-4, atol=1e-4)
    assert nlls[~creative].isnan().all()

    def targets(divergence):
        monkeypatch.setattr(trainer, "_scorer_nlls", lambda *_: torch.where(creative, own + divergence, torch.nan))
        return trainer._references(trainer.step, batch)["entropy_target"]

    torch.testing.assert_close(targets(0.4), targets(0.0) - 0.4 * creative, rtol=0, atol=1e-4)
    torch.testing.assert_close(targets(-0.4), targets(0.0), rtol=0, atol=1e-4)


TEMPLATE = (
    "{% for message in messages %}<|im_end|>{{ message['content'] }}<eos>{% endfor %}"
    "{% if mood is defined %}{{ mood }}{% endif %}<|im_end|>"
)


@pytest.mark.parametrize("chat", [False, True])
def test_the_scorer_reads_what_the_policy_reads(chat, make_trainer, prompts, own_tokenizer, monkeypatch):
    """In the reward, in the divergence and in the human level: the ids of the policy's prompts."""
    config = {}
    if chat:
        own_tokenizer.chat_template = TEMPLATE
        prompts = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
        config = {"chat_template_kwargs": {"mood": " the forest"}}
    trainer = make_trainer(target_entropy_coef=1.0, data=prompts, **config)
    read, reward = [], trainer.uncertainty
    score, token_nlls = reward.first.scorer.score, reward.first.token_nlls

    def noted_score(texts, prefixes, *args, **kwargs):
        read.extend(prefixes)
        return score(texts, prefixes, *args, **kwargs)

    def noted_nlls(before, own, details):
        read.extend(before[:4])
        return token_nlls(before, own, details)

    monkeypatch.setattr(reward.first.scorer, "score", noted_score)
    monkeypatch.setattr(reward.first, "token_nlls", noted_nlls)
    batch, _ = scored_batch(trainer)
    own = batch["prompt_ids"][0][batch["prompt_mask"][0].bool()].tolist()
    expected = "<|im_end|>Once upon a time<eos> the forest<|im_end|>" if chat else "<bos>Once upon a time"
    assert own_tokenizer.decode(own) == expected
    assert len(read) == 4 + 4 + 1
    assert all(list(prefix) == own for prefix in read)


def test_targets_by_domain_and_prompt(make_trainer, human_profile):
    trainer = make_trainer()
    batch, rows = scored_batch(trainer)
    creative = torch.tensor([row["domain"] == "creative" for row in rows])
    (judged,) = trainer.uncertainty.first.judge([rows[0]["prompt"]], [""], human=[rows[0]["human_completion"]])
    level = torch.full((4,), judged.human_level)
    torch.testing.assert_close(batch["entropy_target"][creative], level, check_dtype=False)
    # On functional prompts: the base's own entropy on the same completion, at the sampling temperature.
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad(), trainer.model.disable_adapter():
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].shape[1] - 1 : -1]
    logp = logits.log_softmax(-1)
    entropy = -(logp.exp() * logp).sum(-1)
    own = (entropy * batch["completion_mask"]).sum(1) / batch["completion_mask"].sum(1)
    torch.testing.assert_close(batch["entropy_target"][~creative], own[~creative], rtol=1e-4, atol=1e-4)


def test_a_run_that_is_resumed_has_the_multiplier(make_trainer, tmp_path):
    config = {"constraint_margin": -0.2, "constraint_warmup": 0, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(max_steps=4, **config)
    whole.train()
    resumed = make_trainer(max_steps=4, **config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert resumed.constraint.updates == whole.constraint.updates
    assert resumed.constraint.limit == whole.constraint.limit
    first = whole.state.log_history[1]["constraint/factuality/lambda"]
    assert resumed.state.log_history[1]["constraint/factuality/lambda"] == first


def test_a_limit_that_the_base_violates_is_said(make_trainer, caplog):
    trainer = make_trainer(rewards=[length_reward, FactualityReward()], constraint_limit=0.25, target_entropy_coef=0.0)
    trainer.train()
    assert "the model violates the limit before training: its cost is 1.000, the limit 0.250" in caplog.text


def test_the_margin_is_above_the_cost_of_the_base(make_trainer):
    trainer = make_trainer(constraint_margin=0.05)
    cost = trainer.base_cost()
    trainer.train()
    assert 0 < cost < 1
    assert trainer.constraint.limit == pytest.approx(cost + 0.05)


def test_mostly_nan_ends_the_run_with_what_was_saved(make_trainer, tmp_path):
    calls = []

    def broken(completions, **_):
        calls.append(len(completions))
        return [math.nan] * 5 + [0.0] * 3 if len(calls) > 1 else [1.0, math.nan] + [0.0] * 6

    trainer = make_trainer(rewards=[broken], target_entropy_coef=0.0, max_steps=5)
    with pytest.raises(InputError, match=r"broken: 5 of 8 rewards of step 2 are NaN"):
        trainer.train()
    assert len(calls) == 2
    assert trainer.state.log_history[0]["rewards/broken/nan"] == 1
    assert (tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors").exists()


def test_the_run_ends_where_the_entropy_leaves_its_band(make_trainer):
    trainer = make_trainer(max_steps=4, entropy_low=0.0, entropy_high=0.5, entropy_patience=2)
    trainer.train()
    assert trainer.state.global_step == 2


def test_full_fine_tuning_needs_a_scorer_of_its_own(make_trainer, human_profile, base_model, tokenizer):
    reward = UncertaintyReward(human_profile, Scorer(base_model().eval(), tokenizer, name="tiny"))
    trainer = make_trainer(rewards=[reward, Lucky()], full=True)
    trainer.train()
    log = trainer.state.log_history[0]
    assert math.isfinite(log["entropy/creative_target"])
    assert "entropy/functional_target" not in log
    with pytest.raises(InputError, match="functional_beta needs the frozen base"):
        make_trainer(rewards=[reward, Lucky()], full=True, functional_beta=1.0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"multi_objective_aggregation": "sum_then_normalize"}, "the constraint would do nothing"),
        ({"target_entropy_coef": -1.0}, "target_entropy_coef is -1.0"),
        ({"functional_beta": -1.0}, "functional_beta is -1.0"),
        ({"entropy_coef": 0.1}, "pull at one entropy"),
        ({"scale_rewards": "rows"}, "scale_rewards='rows': choose of batch, group, none"),
        ({"constraint_limit": 0.1, "constraint_margin": 0.1}, "give one"),
        ({"constraint_limit": 0.1, "reward_weights": [1.0, 0.0]}, "weight of the FactualityReward is 0"),
        ({"constraint_limit": 0.1, "constraint_window": 0}, "constraint_window"),
    ],
)
def test_settings_under_which_something_would_do_nothing_are_refused(config, says, make_trainer):
    with pytest.raises(InputError, match=says):
        make_trainer(**config)


def test_what_is_missing_is_refused_before_training(make_trainer, prompts, human_profile):
    with pytest.raises(InputError, match="no column 'domain'"):
        make_trainer(data=Dataset.from_dict({"prompt": ["Once"]}))
    with pytest.raises(InputError, match="no functional rows"):
        make_trainer(data=prompts.filter(lambda row: row["domain"] == "creative"), constraint_limit=0.1)
    with pytest.raises(InputError, match="no reward is a FactualityReward"):
        make_trainer(rewards=[UncertaintyReward(human_profile)], constraint_limit=0.1)
    with pytest.raises(InputError, match="has its targets from an UncertaintyReward"):
        make_trainer(rewards=[length_reward])
    with pytest.raises(InputError, match="was fitted with 'gemma-3-270m'"):
        make_trainer(rewards=[UncertaintyReward("gemma-3-270m"), Lucky()])


class AsyncReward:
    async def __call__(self, completions, **_):
        return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (AsyncReward(), "reward AsyncReward: this trainer takes no async"),
        (AsyncReward().__call__, "reward __call__: this trainer takes no async"),
        (torch.nn.Linear(1, 1), "reward Linear: this trainer takes functions, and no models"),
        ("some/model", "reward some/model: this trainer takes functions, and no models"),
        (None, "reward NoneType: this trainer takes functions"),
    ],
)
def test_rewards_that_are_no_plain_functions_are_refused(reward, says, make_trainer):
    with pytest.raises(InputError, match=says):
        make_trainer(rewards=[reward, Lucky()], target_entropy_coef=0.0)


def test_rows_of_an_unknown_domain_are_refused_when_they_are_seen(make_trainer, prompts):
    odd = prompts.map(lambda row: {"domain": row["domain"].replace("c", "C", 1)})
    config = {"rewards": [length_reward, Lucky()], "target_entropy_coef": 0.0, "shuffle_dataset": None}
    with pytest.raises(InputError, match="is of domain 'Creative', not 'creative' or 'functional'"):
        make_trainer(data=odd.to_iterable_dataset(), **config).train()


def test_a_stream_without_functional_rows_is_refused_under_a_constraint(make_trainer, prompts):
    creative = prompts.filter(lambda row: row["domain"] == "creative").to_iterable_dataset()
    config = {"rewards": [length_reward, Lucky()], "target_entropy_coef": 0.0, "shuffle_dataset": None}
    with pytest.raises(InputError, match="no functional rows, and the constraint is held on them"):
        make_trainer(data=creative, constraint_limit=0.1, **config).train()


@pytest.mark.parametrize("kind", ["creative", "odd"])
def test_an_endless_stream_is_not_read_for_ever(kind, make_trainer):
    def rows():
        yield {"prompt": "Once", "domain": "creative"}
        while True:
            yield {"prompt": "Once", "domain": kind}

    says = {"creative": "no functional rows among its first 10000, and", "odd": "is of domain 'odd'"}[kind]
    config = {"rewards": [length_reward, Lucky()], "target_entropy_coef": 0.0, "shuffle_dataset": None}
    with pytest.raises(InputError, match=says):
        make_trainer(data=IterableDataset.from_generator(rows), constraint_limit=0.1, **config)


def test_evaluation_sets_need_domains_too(make_trainer, prompts):
    bare, odd = prompts.remove_columns("domain"), prompts.map(lambda row: {"domain": "poetry"})
    with pytest.raises(InputError, match="the evaluation set has no column 'domain'"):
        make_trainer(eval_dataset=bare)
    with pytest.raises(InputError, match="the evaluation set odd's row 0 is of domain 'poetry'"):
        make_trainer(eval_dataset={"well": prompts, "odd": odd})


def test_answers_that_nothing_can_match_are_refused_before_training(make_trainer, prompts):
    rows = prompts.to_list()
    rows[3]["answer"] = ["+"]
    with pytest.raises(InputError, match=r"the training set's row 3, answer: '\+' has no word"):
        make_trainer(data=Dataset.from_list(rows))
    with pytest.raises(InputError, match=r"the evaluation set few's row 3, answer: '\+' has no word"):
        make_trainer(eval_dataset={"few": Dataset.from_list(rows)})
