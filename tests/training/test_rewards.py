"""The rewards: what they prefer, their routing by domain, groups and kind, and how TRL calls them."""

import copy
import dataclasses
import json
import math
import pickle
import random
import types

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import GRPOConfig, GRPOTrainer

import ugap.profile.fitting
import ugap.training.judge
from ugap.data import load_texts
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.texts import FEATURES
from ugap.scoring import Scorer, SharedScorer
from ugap.study.excerpts import cut_excerpts
from ugap.study.generation import generate_continuations
from ugap.training import FactualityReward, UncertaintyReward, rewards

PROMPT = "Once upon"


@pytest.fixture
def scorer(base_model, tokenizer):
    return Scorer(base_model().eval(), tokenizer, name="tiny")


@pytest.fixture
def reward(human_profile, scorer):
    return UncertaintyReward(human_profile, scorer)


def call(reward, texts, **columns):
    return reward(prompts=[PROMPT] * len(texts), completions=list(texts), completion_ids=[[]] * len(texts), **columns)


def details(reward, texts, **columns):
    return reward.details(**{"prompts": [PROMPT] * len(texts), **columns}, completions=list(texts))


def loops(texts):
    return [" ".join(text.split()[:3] * 13) for text in texts]


@pytest.fixture(scope="module")
def people(tokenizer, human_texts):
    """Human texts of 32 tokens, a length that the profile knows."""
    ends = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"][31][1] for text in human_texts]
    return [text[:end] for text, end in zip(human_texts, ends, strict=True)]


def test_people_are_above_loops(reward, people):
    human, other = call(reward, people), call(reward, loops(people[:10]))
    assert np.mean(human) == pytest.approx(0.9, abs=0.1)
    assert max(other) < min(human)
    # In one batch too.
    both = call(reward, people[-10:] + loops(people[:10]))
    assert np.mean(both[:10]) > max(both[10:])


def test_a_text_alone_has_its_closeness(human_profile, scorer, reward, human_texts):
    kind = human_profile.kind("creative")
    (score,) = scorer.score(human_texts[-1:], [PROMPT], pmi=True)
    expected = kind.texts.closeness(kind.text_features(score), len(score))
    assert call(reward, human_texts[-1:]) == [pytest.approx(expected, rel=1e-5)]
    loop = loops(human_texts[:1])
    (score,) = scorer.score(loop, [PROMPT], pmi=True)
    expected = kind.texts.closeness(kind.text_features(score), len(score))
    assert call(reward, loop) == [pytest.approx(expected, rel=1e-5)]
    assert expected < 0.7


def test_one_measure_alone(human_profile, scorer, human_texts):
    whole = UncertaintyReward(human_profile, scorer)
    alone = UncertaintyReward(human_profile, scorer, features=["repetition"], name="repetition_reward")
    loop = loops(human_texts[-1:])
    judged = alone.judge([PROMPT], loop)[0]
    standardised = judged.judged[0].standardised
    assert standardised is not None
    z = standardised[FEATURES.index("repetition")]
    # 1.3233 is the third quartile of chi-squared over one degree of freedom.
    assert judged.reward == pytest.approx(1 / (1 + max(0, z**2 - 1.3233) / 4), rel=1e-4)
    assert whole.judge([PROMPT], loop)[0].reward != judged.reward
    with pytest.raises(InputError, match="choose of surprisal, entropy"):
        UncertaintyReward(features=["entorpy"])


def test_the_same_text_for_every_prompt_has_less_than_people(reward, people):
    """The best text of all, over and over: nothing is closer to people, and it is no human distribution."""
    points = [reward.judge([PROMPT], [text])[0].judged[0].point(32, FEATURES) for text in people]
    best = people[int(np.argmin([np.nansum(point**2) for point in points]))]
    prompts = [f"{PROMPT} {'the' * (i % 4)}" for i in range(16)]
    assert np.mean(reward(prompts, [best] * 16)) < np.mean(reward(prompts, people[:16])) - 0.3
    pointwise = UncertaintyReward(reward.first.profile, reward.first.scorer, pointwise=True)
    assert np.mean([one.reward for one in pointwise.judge(prompts, [best] * 16)]) > 0.95


@pytest.mark.parametrize("pointwise", [False, True])
def test_stopping_early_is_below_every_whole_completion_of_the_prompt(pointwise, human_profile, scorer, human_texts):
    reward = UncertaintyReward(human_profile, scorer, pointwise=pointwise, length=52)
    whole = [*human_texts[-4:], *loops(human_texts[:4])]
    for words in (1, 8, 16, 24):
        short = [" ".join(text.split()[:words]) for text in human_texts[-8:]]
        prompts = ["Once"] * 8 + [PROMPT] * 8
        found = details(reward, whole[:4] + short[:4] + whole[4:] + short[4:], prompts=prompts)
        for group in (found[:8], found[8:]):
            assert max(one.share for one in group[4:]) < 0.9
            assert max(one.reward for one in group[4:]) < min(one.reward for one in group[:4])
    # Without any whole one: the longer, the better.
    reward = UncertaintyReward(human_profile, scorer, pointwise=pointwise, length=100)
    found = details(reward, [" ".join(human_texts[0].split()[:n]) for n in (8, 16, 24, 32)])
    assert [one.reward for one in found] == sorted(one.share - 1 for one in found)


def test_without_a_nominal_length_no_completion_is_short(reward, human_texts):
    texts = [human_texts[0], " ".join(human_texts[1].split()[:10])]
    assert [one.share for one in details(reward, texts)] == [1, 1]


def test_the_nominal_length_is_that_of_the_human_text_where_it_is_shorter(reward, human_texts):
    texts = [human_texts[0], " ".join(human_texts[1].split()[:10])]
    reward.length = 40
    alone = details(reward, texts)
    ended = details(reward, texts, human_completion=[None, " ".join(human_texts[2].split()[:9])])
    assert alone[1].reward < alone[0].reward
    assert alone[1].share < 0.5
    assert ended[1].share > 0.9
    assert ended[1].reward > 0.5


def test_the_drawn_tokens_are_counted_where_they_are_known(reward, human_texts):
    reward.length = 40
    drawn = details(reward, human_texts[:2], completion_ids=[[5] * 40, [5] * 20])
    assert [one.share for one in drawn] == [1, 0.5]
    # Special tokens do not make a text longer.
    end = reward.first.scorer.tokenizer.eos_token_id
    assert details(reward, human_texts[:1], completion_ids=[[5] * 10 + [end] * 30])[0].share == 0.25


@pytest.mark.slow
def test_control_tokens_make_no_text_longer(smollm2):
    """`all_special_ids` of transformers names 2 of the 17 of this tokenizer."""
    reward = UncertaintyReward(scorers=[smollm2], kind="story", length=60)
    text = " Two and two make four, said the old man by the door."
    ids, control = (smollm2.tokenizer(one)["input_ids"] for one in (text, "<file_sep>"))
    assert len(control) == 1
    plain, padded = details(reward, [text, text], completion_ids=[ids, ids + control * 50])
    assert plain.share == padded.share == len(ids) / 60


def test_several_scorers_read_each_with_its_own_profile(human_profile, scorer, make_model, tokenizer, human_texts):
    other = Scorer(make_model("llama", initializer_range=0.4), tokenizer, name="other")
    scores = other.score(human_texts, [PROMPT] * len(human_texts), pmi=True)
    profile = HumanProfile.fit({"creative": scores}, resamples=2)
    texts = [*human_texts[-6:], *loops(human_texts[:2])]
    each = [call(UncertaintyReward(*one), texts) for one in ((human_profile, scorer), (profile, other))]
    logged: dict[str, float] = {}
    both = UncertaintyReward([human_profile, profile], [scorer, other])
    assert call(both, texts) == pytest.approx(np.mean(each, axis=0))
    assert each[0] != pytest.approx(each[1], abs=0.01)
    call(both, texts, log_metric=logged.__setitem__)
    assert {f"uncertainty_reward/{name}/closeness" for name in ("tiny", "other")} < logged.keys()
    with pytest.raises(InputError, match="2 scorers and 1 human profiles"):
        UncertaintyReward(human_profile, [scorer, other])


def test_other_domains_get_none(reward, human_texts):
    texts = human_texts[:4]
    out = call(reward, texts, domain=["creative", "functional", "creative", "functional"])
    assert [value is None for value in out] == [False, True, False, True]
    assert call(reward, texts[::2]) == pytest.approx(out[::2])  # other rows are no peers
    assert call(reward, texts, domain=["functional"] * 4) == [None] * 4


def test_an_empty_or_invalid_completion_counts_as_one_of_no_length(reward, human_texts):
    assert call(reward, ["", "a", "no \0 text", " "]) == [-1.0] * 4
    whole, *others = (one.reward for one in details(reward, [human_texts[0], "", "no \0 text"]))
    assert others == pytest.approx([whole - 1] * 2)


def test_logits_that_are_not_finite_give_nan(reward, scorer, human_texts):
    assert call(reward, human_texts[:1])[0] > 0
    with torch.no_grad():
        scorer.model.model.embed_tokens.weight[:] = math.nan
    (value,) = call(reward, human_texts[:1])
    assert math.isnan(value)


def test_chats_go_through_the_template(reward, scorer, human_texts):
    prompt, completion = [{"role": "user", "content": "Go on."}], [{"role": "assistant", "content": human_texts[0]}]
    with pytest.raises(InputError, match="no chat template"):
        reward(prompts=[prompt], completions=[completion])
    own = copy.deepcopy(scorer.tokenizer)
    own.chat_template = "{% for m in messages %}<|im_end|>{{ m['content'] }}<eos>{% endfor %}<|im_end|>"
    chatty = UncertaintyReward(reward.first.profile, Scorer(scorer.model, own, name="tiny"))
    (value,) = chatty(prompts=[prompt], completions=[completion])
    ids = own("<|im_end|>Go on.<eos><|im_end|>", add_special_tokens=False)["input_ids"]
    score = scorer.score([human_texts[0]], [ids], pmi=True)[0]
    domain = reward.first.profile.kind("creative")
    assert value == pytest.approx(domain.texts.closeness(domain.text_features(score), len(score)))


def test_what_is_logged(reward, human_texts):
    metrics: dict[str, float] = {}
    extra: dict[str, list] = {}
    call(
        reward,
        human_texts[:3],
        domain=["creative", "functional", "creative"],
        log_metric=lambda name, value: metrics.__setitem__(name, value),
        log_extra=lambda name, values: extra.__setitem__(name, values),
    )
    names = (*FEATURES, "closeness", "energy_distance", "short")
    assert {f"uncertainty_reward/{name}" for name in names} == metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())
    assert [value is None for value in extra["uncertainty_reward_nll"]] == [False, True, False]


def test_pickled_and_back(human_profile, scorer, human_texts):
    for reward in (UncertaintyReward(human_profile, scorer), FactualityReward("contrastive")):
        again = pickle.loads(pickle.dumps(reward))  # noqa: S301  (our own bytes)
        columns = {"answer": ["a"] * 2, "wrong": [["b"]] * 2}
        assert call(again, human_texts[:2], **columns) == call(reward, human_texts[:2], **columns)
        assert again.__name__ == reward.__name__
    # A scorer that was shared is not taken along: it is the policy of whoever calls.
    policy = get_peft_model(scorer.model, LoraConfig(target_modules="all-linear"))
    shared = UncertaintyReward(human_profile)
    shared.bind(policy, scorer.tokenizer)
    assert isinstance(shared.first.scorer, SharedScorer)
    again = pickle.loads(pickle.dumps(shared))  # noqa: S301
    with pytest.raises(InputError, match="has no scorer yet"):
        _ = again.first.scorer


@pytest.fixture
def two_policies(base_model, make_model):
    """PEFT policies of two models."""
    models = (base_model(), make_model("llama", initializer_range=0.3))
    return [get_peft_model(model, LoraConfig(target_modules=["q_proj"])) for model in models]


@pytest.fixture
def own_profiles(monkeypatch, human_profile, human_texts):
    """Every scorer has a profile of its own."""

    def fit(cls, scorer):
        return dataclasses.replace(human_profile, scorer_name=scorer.id.name, weight_hash=scorer.id.weight_hash)

    monkeypatch.setattr(HumanProfile, "for_scorer", classmethod(fit))


def human_levels(reward, prompts, human):
    """Expected surprisal of people after prompts, with no completion to judge."""
    return [one.human_level for one in reward.first.judge(prompts, [""] * len(prompts), human=human)]


def test_another_policy_is_bound_anew(two_policies, own_profiles, tokenizer, human_texts):
    reward = UncertaintyReward()
    found, levels = [], []
    for policy in two_policies:
        reward.bind(policy, tokenizer)
        fresh = UncertaintyReward()
        fresh.bind(policy, tokenizer)
        assert isinstance(reward.first.scorer, SharedScorer)
        assert reward.first.scorer.policy is policy
        assert reward.first.profile.weight_hash == fresh.first.profile.weight_hash == reward.first.scorer.id.weight_hash
        found.append(call(reward, human_texts[:2]))
        assert found[-1] == call(fresh, human_texts[:2])
        levels.append(human_levels(reward, [PROMPT], human_texts[:1]))
        assert levels[-1] == human_levels(fresh, [PROMPT], human_texts[:1])
    assert found[0] != found[1]
    assert levels[0] != levels[1]
    scorer = reward.first.scorer
    reward.bind(two_policies[1], tokenizer)
    assert reward.first.scorer is scorer


def test_the_trainer_that_calls_is_the_one_that_is_bound(two_policies, own_profiles, tokenizer, human_texts):
    class Trainer:
        processing_class = tokenizer
        max_completion_length = 40
        accelerator = types.SimpleNamespace(unwrap_model=lambda model: model, num_processes=1)

        def __init__(self, model):
            self.model = model

        def log(self, name, value):
            pass

        def _tokenize_prompts(self, prompts):
            return [tokenizer(prompt)["input_ids"] for prompt in prompts], None, {}

    reward = UncertaintyReward()
    for policy in (*two_policies, two_policies[0]):
        call(reward, human_texts[:1], log_metric=Trainer(policy).log)
        assert isinstance(reward.first.scorer, SharedScorer)
        assert reward.first.scorer.policy is policy


def test_a_scorer_that_is_given_stays(two_policies, reward, tokenizer):
    scorer = reward.first.scorer
    for policy in two_policies:
        reward.bind(policy, tokenizer)
        assert reward.first.scorer is scorer


def test_the_ready_instances():
    for name in ("uncertainty_reward", "surprisal_reward", "entropy_reward", "pmi_reward", "factuality_reward"):
        assert getattr(rewards, name).__name__ == name
        pickle.dumps(getattr(rewards, name))


def test_plain_trl_shares_the_base_of_a_peft_policy(base_model, human_profile, tokenizer, prompts, tmp_path):
    """As `trl grpo --reward_funcs` uses them: a reward without a scorer, a trainer that knows nothing of it."""
    creative, factual = UncertaintyReward(human_profile), FactualityReward()
    args = GRPOConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=1,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        logging_steps=1,
        save_strategy="no",
        top_k=0,
    )
    trainer = GRPOTrainer(
        base_model(),
        [creative, factual],
        args=args,
        train_dataset=prompts,
        processing_class=tokenizer,
        peft_config=LoraConfig(target_modules="all-linear"),
    )
    trainer.train()
    assert isinstance(creative.first.scorer, SharedScorer)
    log = trainer.state.log_history[0]
    assert -1 <= log["rewards/uncertainty_reward/mean"] <= 2
    assert log["rewards/factuality_reward/mean"] == 0
    assert math.isfinite(log["uncertainty_reward/surprisal"])


def test_the_human_level_of_a_prompt(reward, scorer, human_texts, human_profile):
    level = human_profile.kind("creative").means["surprisal"]
    own, other = human_levels(reward, [PROMPT, PROMPT], [human_texts[0], None])
    assert other == level
    score = scorer.score(human_texts[:1], [PROMPT])[0]
    assert own == pytest.approx(human_profile.curve("creative")(score.entropy).mean(), rel=1e-5)
    assert own != level


def test_a_batch_is_scored_in_one_pass(reward, scorer, human_texts, monkeypatch):
    """Completions and human completions together; drawn ids again only where the text has other ids."""
    scored = []
    run_all = scorer._run_all

    def keep(requests, *args):
        scored.extend([requests] if requests else [])  # an empty pass reads nothing
        return run_all(requests, *args)

    monkeypatch.setattr(scorer, "_run_all", keep)
    prompt = scorer.tokenizer(f"<bos>{PROMPT}")["input_ids"]
    details = reward.first.judge([prompt] * 2, human_texts[:2], human=[human_texts[2], None])
    assert len(scored) == 1
    assert [one.human_level for one in details] == human_levels(reward, [prompt] * 2, [human_texts[2], None])
    ids = [one.token_ids for one in details]
    assert ids[0] == scorer.tokenizer(human_texts[0], add_special_tokens=False)["input_ids"]
    assert reward.first.token_nlls([prompt] * 2, ids, details) == [one.nll for one in details]
    assert len(scored) == 1
    letters = [i for letter in "once" for i in scorer.tokenizer(letter, add_special_tokens=False)["input_ids"]]
    known, other, none = reward.first.token_nlls([prompt] * 3, [ids[0], letters, []], [*details, None])
    (requests,) = scored[1:]
    assert [request.token_ids for request in requests] == [letters]
    assert known == details[0].nll
    assert other == pytest.approx(run_all(requests, False)[1][0].mean())
    assert math.isnan(none)


def test_completions_are_compared_with_the_kind_that_is_named(reward, human_profile, human_texts):
    """Rows of the creative domain, compared with human texts of the functional kind."""
    other = UncertaintyReward(human_profile, reward.first.scorer, kind="functional")
    texts = loops(human_texts[:2])
    rewards = call(other, texts, domain=["creative", "functional"])
    assert rewards[1] is None
    (score,) = reward.first.scorer.score(texts[:1], [PROMPT], pmi=True)
    functional = human_profile.kind("functional")
    expected = functional.texts.closeness(functional.text_features(score), len(score))
    assert rewards[0] == pytest.approx(expected, rel=1e-5)
    assert rewards[0] != call(reward, texts[:1])[0]
    # A row that names its kind is compared with that kind, unless the reward names one.
    assert call(reward, texts[:1], kind=["functional"]) == rewards[:1]
    assert call(other, texts[:1], kind=["creative"]) == rewards[:1]
    rows = Dataset.from_dict({"kind": ["functional", "sermon", None], "domain": ["creative", "functional", "creative"]})
    reward.check(rows)
    with pytest.raises(InputError, match="has no kind 'sermon'"):
        reward.check(rows.remove_columns("domain"))
    other.check(rows.remove_columns("domain"))


def test_the_prompt_decides_on_the_kind(human_profile, reward, human_texts, monkeypatch):
    """With `auto`: what the profile says of the prompt's tokens, asked once for every prompt."""
    asked, target = [], HumanProfile.target

    def noted(self, selection, **known):
        asked.append(known)
        return target(self, "functional" if known["position"] > 4 else "creative")

    monkeypatch.setattr(HumanProfile, "target", noted)
    auto = UncertaintyReward(human_profile, reward.first.scorer, kind="auto")
    texts = loops(human_texts[:2])
    long, short = human_texts[5], "once upon"
    found = [auto([prompt], texts[:1])[0] for prompt in (long, short, long)]
    named = [UncertaintyReward(human_profile, reward.first.scorer, kind=kind) for kind in ("functional", "creative")]
    assert found[:2] == [one([prompt], texts[:1])[0] for one, prompt in zip(named, (long, short), strict=True)]
    assert len(asked) == 2
    ids = reward.first.scorer.tokenizer(long)["input_ids"]
    (score,) = reward.first.scorer.score([long])
    np.testing.assert_allclose(asked[0]["prompt"].surprisal, score.surprisal, rtol=1e-5)
    assert asked[0]["prompt"].token_ids.tolist() == ids
    assert asked[0]["position"] == len(ids)


def test_the_kinds_of_a_batch_are_not_forgotten_while_it_is_read(human_profile, reward, human_texts, monkeypatch):
    """What is remembered has a bound, which a batch of many prompts passes."""
    target = HumanProfile.target
    monkeypatch.setattr(HumanProfile, "target", lambda self, *_, **known: target(self, "functional"))
    monkeypatch.setattr(ugap.training.judge, "_MOST_KINDS", 3)
    judge = UncertaintyReward(human_profile, reward.first.scorer, kind="auto").first
    judge.bind(None, None)
    functional = human_profile.kind("functional").means["surprisal"]
    for _ in range(2):
        people = judge._people(human_texts[:5], ["auto"] * 5)
        assert [one.means["surprisal"] for one in people] == [functional] * 5


def test_what_cannot_be_compared_is_refused(reward, human_profile, make_model, tokenizer, human_texts):
    other = Scorer(make_model("phi"), tokenizer, name="another")
    with pytest.raises(InputError, match="was fitted with 'tiny'"):
        call(UncertaintyReward(human_profile, other), human_texts[:1])
    with pytest.raises(InputError, match="has no kind 'poetry'"):
        call(UncertaintyReward(human_profile, reward.first.scorer, domain="poetry"), human_texts[:1])
    with pytest.raises(InputError, match="has no kind 'sermon'"):
        call(UncertaintyReward(human_profile, reward.first.scorer, kind="sermon"), human_texts[:1])
    with pytest.raises(InputError, match="is not called by a trainer"):
        call(UncertaintyReward(human_profile), human_texts[:1])
    few = HumanProfile.fit(
        {"creative": reward.first.scorer.score(human_texts[:5], [PROMPT] * 5, pmi=True)}, resamples=2
    )
    with pytest.raises(InputError, match="without features of whole texts"):
        call(UncertaintyReward(few, reward.first.scorer), human_texts[:1])


def test_a_scorer_that_nobody_prepared_gets_a_profile(make_model, tokenizer, human_texts, tmp_path, monkeypatch):
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(ugap.profile.fitting, "EMBEDDED_TEXTS", 16)
    reward = UncertaintyReward(scorers=Scorer(make_model("phi"), tokenizer, name="another"))
    assert 0 < call(reward, human_texts[:1])[0] <= 1
    assert reward.first.profile.scorer_name == "another"
    assert list(tmp_path.glob("profiles/*/profile.json"))


class TestFactuality:
    def test_exact(self):
        said = [" Paris.", " the city of Paris", " paris, which", " Lyon"]
        assert call(FactualityReward(), said, answer=["Paris"] * 4) == [1.0, 0.0, 1.0, 0.0]
        assert call(FactualityReward(), [" 8", " eight", " nine"], answer=[["eight", "8"]] * 3) == [1.0, 1.0, 0.0]

    def test_contrastive(self):
        said = [" It is Paris, not Lyon.", " It is Lyon, not Paris.", " I do not know.", " New York City"]
        answers = ["Paris", "Paris", "Paris", "New York City"]
        out = call(FactualityReward("contrastive"), said, answer=answers, wrong=[["Lyon", "New York"]] * 4)
        assert out == [1.0, 0.0, 0.0, 1.0]

    def test_rows_of_other_domains_or_without_an_answer_get_none(self):
        out = call(
            FactualityReward(),
            [" a", " a", " a"],
            answer=["a", "a", None],
            domain=["functional", "creative", "functional"],
        )
        assert out == [1.0, None, None]

    def test_numbers_are_their_text(self):
        said, answers = [" 12", " 12", " 0.5", " True", " 1000000"], [12, 12.0, np.float32(0.5), True, [7, 1e6]]
        assert call(FactualityReward(), said, answer=answers) == [1.0] * 5
        assert call(FactualityReward(), [" 13"], answer=[12]) == [0.0]

    @pytest.mark.parametrize(
        ("answer", "says"),
        [
            ("", "'' has no word"),
            (["four", "-"], "'-' has no word"),
            (math.nan, "nan is no text"),
            ([None], "None is no text"),
            ({"text": "four"}, "is no text and no number"),
        ],
    )
    def test_answers_that_nothing_can_match(self, answer, says):
        reward = FactualityReward()
        row = {"answer": answer, "domain": "functional"}
        with pytest.raises(InputError, match=rf"^the training set's row 1, answer: .*{says}"):
            reward.check([{**row, "domain": "creative"}, row])
        with pytest.raises(InputError, match=rf"row 0 of the batch, answer: .*{says}"):
            call(reward, [" four"], answer=[answer])
        wrong = {"answer": "five", "wrong": answer}
        reward.check([wrong])
        with pytest.raises(InputError, match=rf"^the training set's row 0, wrong: .*{says}"):
            FactualityReward("contrastive").check([wrong])

    def test_chats(self):
        completion = [{"role": "assistant", "content": "Paris."}]
        assert FactualityReward()([[{"role": "user", "content": "?"}]], [completion], answer=["Paris"]) == [1.0]

    def test_missing_columns_and_unknown_kinds(self):
        with pytest.raises(InputError, match="no column 'answer'"):
            call(FactualityReward(), [" a"])
        with pytest.raises(InputError, match="no column 'wrong'"):
            call(FactualityReward("contrastive"), [" a"], answer=["a"])
        with pytest.raises(InputError, match="kind 'fuzzy'"):
            FactualityReward("fuzzy")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_real_model_ranks_people_first(smollm2):
    """On the embedded tales, which the shipped profile was not fitted on: people, and what is made of their texts."""
    excerpts = cut_excerpts(
        [row for row in load_texts("demo") if row.domain == "creative"],
        smollm2.tokenizer,
        prefix_tokens=64,
        max_new_tokens=64,
        limit=16,
        per_text=1,
    )
    rng = random.Random(0)
    tokenizer, people = smollm2.tokenizer, [excerpt.human for excerpt in excerpts]
    contexts = [
        smollm2.bos + ids for ids in tokenizer([e.prefix for e in excerpts], add_special_tokens=False).input_ids
    ]

    def written(**settings):
        return generate_continuations(smollm2.model, tokenizer, contexts, settings, max_new_tokens=64, seed=0)

    prefixes = [excerpt.prefix for excerpt in excerpts]
    reward = UncertaintyReward(scorers=smollm2, kind="fairy-tale")
    human = np.array(reward(prefixes, people))

    def auc(texts, continued=prefixes):
        other = np.array(reward(continued, texts))
        return np.mean(human[:, None] > other) + np.mean(human[:, None] == other) / 2

    assert human.mean() > 0.7
    # Gibberish and loops are never above a text that a person wrote.
    words = [text.split() for text in people]
    for texts in (
        [tokenizer.decode(rng.sample(range(100, 49000), 64)) for _ in people],
        [" ".join(rng.sample(some, len(some))) for some in words],
        [" ".join((some[:8] * 8)[:50]) for some in words],
    ):
        assert np.array(reward(prefixes, texts)).max() < human.min()
    assert auc(written(do_sample=False)) > 0.95
    assert auc(people[1:] + people[:1]) > 0.8
    assert auc(written(temperature=1.5)) > 0.9
    assert auc(written(temperature=0.7)) > 0.8


def test_by_name_from_the_command_line_of_trl(base_model, save_model, human_profile, prompts, tmp_path, monkeypatch):
    """`trl grpo --reward_funcs ugap.training.rewards.NAME`: its program reads the words and builds the trainer."""
    from trl.scripts.grpo import main, make_parser

    folder = save_model("grpo", base_model())
    data = tmp_path / "data"
    data.mkdir()
    prompts.to_json(data / "train.jsonl")
    monkeypatch.setattr(HumanProfile, "for_scorer", classmethod(lambda cls, scorer: human_profile))
    words = ["--model_name_or_path", str(folder), "--dataset_name", str(data), "--output_dir", str(tmp_path / "run")]
    rewards_of_ours = [f"ugap.training.rewards.{name}" for name in ("surprisal_reward", "factuality_reward")]
    settings = ["--use_cpu", "--bf16", "False", "--report_to", "none", "--max_steps", "1", "--logging_steps", "1"]
    sizes = ["--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "6"]
    lora = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
    argv = [*words, "--reward_funcs", *rewards_of_ours, *settings, *sizes, *lora]
    main(*make_parser().parse_args_and_config(argv))
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
    log = state["log_history"][0]
    assert -1 <= log["rewards/surprisal_reward/mean"] <= 2
    assert log["rewards/factuality_reward/mean"] == 0
