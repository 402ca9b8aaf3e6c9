"""Preference pairs: which continuations are paired, what the rows hold, and how TRL's DPO trainer takes them."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig

from ugap.data.facts import Fact, load_facts
from ugap.errors import InputError
from ugap.training.preferences import PreferenceTrainer, best_and_worst, creative_pairs, functional_pairs
from ugap.training.samples import Sample, sample_continuations

SAMPLES = [Sample("Once", f" text {i}", [2, 3], [10 + i]) for i in range(4)]


def by_length(prompts, completions, completion_ids, domain):
    """More rewarded where there are more of one byte's tokens; always between 0 and 1."""
    assert domain == ["creative"] * len(prompts)
    return [sum(token % 2 for token in ids) / len(ids) for ids in completion_ids]


class TestBestAndWorst:
    def test_the_ends_are_paired(self):
        pair = best_and_worst(SAMPLES, (0.4, 0.9, 0.1, 0.5), 0.1)
        assert pair == {
            "prompt": "Once",
            "chosen": " text 1",
            "rejected": " text 2",
            "chosen_reward": 0.9,
            "rejected_reward": 0.1,
            "domain": "creative",
            "prompt_ids": [2, 3],
            "chosen_ids": [11],
            "rejected_ids": [12],
        }

    def test_what_has_no_reward_is_in_no_pair(self):
        pair = best_and_worst(SAMPLES, (None, 0.6, math.nan, 0.5), 0.05)
        assert pair is not None
        assert (pair["chosen"], pair["rejected"]) == (" text 1", " text 3")

    @pytest.mark.parametrize("rewards", [(0.5, 0.55, 0.5, 0.5), (None,) * 4, (0.9, None, math.nan, None)])
    def test_none_where_the_rewards_differ_too_little(self, rewards):
        assert best_and_worst(SAMPLES, rewards, 0.1) is None


class TestCreativePairs:
    @pytest.fixture
    def make(self, base_model, tokenizer):
        def make(prompts=("Once upon a time", "The old man", "A function returns"), reward=by_length, **settings):
            shape = {"samples_per_prompt": 3, "max_new_tokens": 9, "min_margin": 0.05, "batch_size": 2}
            return creative_pairs(base_model().eval(), tokenizer, reward, prompts, **shape | settings)

        return make

    def test_pairs_are_of_one_prompt_and_ranked(self, make, tokenizer):
        pairs = make()
        assert pairs
        for pair in pairs:
            assert pair["chosen_reward"] - pair["rejected_reward"] >= 0.05
            assert pair["prompt_ids"] == [2, *tokenizer(pair["prompt"])["input_ids"]]
            for side in ("chosen", "rejected"):
                assert len(pair[f"{side}_ids"]) <= 9
                assert by_length([""], [""], [pair[f"{side}_ids"]], ["creative"]) == [pair[f"{side}_reward"]]

    def test_the_continuations_of_many_prompts_are_rewarded_together(self, make, monkeypatch):
        monkeypatch.setattr("ugap.training.preferences.POOL", 2)
        seen = []

        def noted(prompts, *args, **kwargs):
            seen.append(len(prompts))
            return by_length(prompts, *args, **kwargs)

        assert make(reward=noted) == make()
        assert seen == [2 * 3, 1 * 3]

    def test_the_seed_says_what_is_drawn(self, make):
        assert make(seed=1) == make(seed=1)
        assert make(seed=1) != make(seed=2)

    def test_a_margin_that_none_has(self, make):
        with pytest.raises(InputError, match="no prompt has two of 3 continuations whose rewards differ by 1"):
            make(min_margin=1)


class TestFunctionalPairs:
    def test_each_pass_has_another_wrong_answer(self, tokenizer):
        facts = load_facts(["capitals"])[:3]
        pairs = functional_pairs(facts, tokenizer, 7)
        assert len(pairs) == 7
        assert {pair["rejected"] for pair in pairs[:3]} == {f" {fact.wrong[0]}." for fact in facts}
        assert {pair["rejected"] for pair in pairs[3:6]} == {f" {fact.wrong[1]}." for fact in facts}

    def test_ids_are_those_of_the_statement(self, tokenizer):
        fact = Fact("a", "sums", "Two and two are", "four", ("five", "six", "seven"))
        (pair,) = functional_pairs([fact], tokenizer, 1)
        for side, answer in (("chosen", "four"), ("rejected", "five")):
            ids = pair["prompt_ids"] + pair[f"{side}_ids"]
            assert ids == [2, *tokenizer(f"Two and two are {answer}.")["input_ids"]]
        assert tokenizer.decode(pair["prompt_ids"][1:]) == "Two and two are"

    def test_none(self, tokenizer):
        assert functional_pairs([], tokenizer, 0) == []


class TestSamples:
    def test_they_are_those_of_their_prompt(self, base_model, tokenizer):
        model = base_model().eval()
        prompts = ["Once upon a time", "The", "A function returns a value"]
        rows = sample_continuations(
            model, tokenizer, prompts, {"do_sample": False}, max_new_tokens=5, per_prompt=2, batch_size=4
        )
        for prompt, samples in zip(prompts, rows, strict=True):
            context = [2, *tokenizer(prompt)["input_ids"]]
            ids = list(context)
            for _ in range(5):
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            assert [sample.ids for sample in samples] == [ids[len(context) :]] * 2
            assert {sample.prompt for sample in samples} == {prompt}
            assert {tuple(sample.prompt_ids) for sample in samples} == {tuple(context)}

    def test_the_end_token_is_kept(self, base_model, tokenizer):
        model = base_model().eval()
        model.generation_config.eos_token_id = list(range(100, 400))  # most tokens end a text
        ((sample,),) = sample_continuations(model, tokenizer, ["Once"], {}, max_new_tokens=30)
        assert sample.ids[-1] >= 100
        assert all(token < 100 for token in sample.ids[:-1])


@pytest.fixture
def make_trainer(base_model, own_tokenizer, tmp_path):
    def make(rows, **settings):
        shape = {"use_cpu": True, "bf16": False, "report_to": "none", "max_steps": 2, "disable_tqdm": True}
        args = DPOConfig(str(tmp_path / "out"), **shape, gradient_checkpointing=False, save_strategy="no", **settings)
        return PreferenceTrainer(
            base_model(),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=own_tokenizer,
            peft_config=LoraConfig(target_modules="all-linear"),
        )

    return make


class TestTrainer:
    def test_ids_are_taken_as_they_are(self, make_trainer, tokenizer):
        rows = functional_pairs(load_facts(["capitals"])[:4], tokenizer, 4)
        trainer = make_trainer(rows, per_device_train_batch_size=4, learning_rate=1e-2)
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        assert [[row[name] for name in names] for row in trainer.train_dataset] == [
            [row[name] for name in names] for row in rows
        ]
        trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log or "train_loss" in log]
        assert all(math.isfinite(log.get("loss", log.get("train_loss"))) for log in logs)

    def test_texts_are_tokenised_by_trl(self, make_trainer):
        rows = [{"prompt": "Two and two are", "chosen": " four.", "rejected": " five."}] * 2
        row = make_trainer(rows).train_dataset[0]
        assert row["chosen_ids"][-1] == 0  # TRL ends what it tokenises

    def test_the_card_without_looks_is_that_of_trl(self, make_trainer, tokenizer, tmp_path):
        trainer = make_trainer(functional_pairs(load_facts(["capitals"])[:2], tokenizer, 2))
        trainer.create_model_card("name")
        card = (tmp_path / "out" / "README.md").read_text()
        assert "Human uncertainty" not in card
        assert "DPO" in card
