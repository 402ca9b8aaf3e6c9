"""GRPO through our samplers: what the loss takes for the old policy is the distribution that was drawn from."""

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from ugap.errors import InputError
from ugap.sampling import HumanEntropyLogitsProcessor
from ugap.sampling.portable.human import HumanSampler
from ugap.training import SampledGRPOTrainer, SampledRollouts

PROMPTS = ["Once upon a time", "The youngest went into the forest", "A function", "The old man"]


def reward(completions, **_):
    """Never the same for all completions of a prompt, which would train nothing."""
    return [float(i) for i in range(len(completions))]


@pytest.fixture
def make_trainer(make_model, tokenizer, tmp_path):
    """`make_trainer(kind, rollouts, **config)`: a trainer of a tiny model whose batches are kept in `.batches`."""

    def make(kind=SampledGRPOTrainer, rollouts=None, **config) -> GRPOTrainer:
        class Kept(kind):
            batches = []  # noqa: RUF012

            def _generate_and_score_completions(self, inputs):
                self.batches.append(super()._generate_and_score_completions(inputs))
                return self.batches[-1]

        settings = GRPOConfig(
            output_dir=str(tmp_path),
            use_cpu=True,
            bf16=False,
            report_to="none",
            max_steps=1,
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=12,
            logging_steps=1,
            save_strategy="no",
            seed=1,
            learning_rate=1e-3,
            top_k=0,
            **config,
        )
        data = Dataset.from_dict({"prompt": PROMPTS})
        return Kept(
            make_model("llama", initializer_range=0.15).requires_grad_(True),
            reward,
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            rollout_func=rollouts,
        )

    return make


@pytest.fixture
def profile(make_model, make_profile):
    """People for whom the temperatures lie between the least and the highest.

    At the least all that is left is the likeliest token, and rounding of the logits counts twenty times.
    """
    return make_profile(make_model("llama", initializer_range=0.15), level=1.1)


@pytest.fixture
def human(profile):
    return HumanEntropyLogitsProcessor(profile, "creative", draw=True)


def dense(processor, model, batch):
    """`log q` of every completion token, from a processor that returns whole distributions; NaN after the end."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
    begin, out = batch["prompt_ids"].shape[1], []
    for step in range(begin, ids.shape[1]):
        scores = processor(ids[:, :step], logits[:, step - 1]).log_softmax(-1)
        out.append(scores.gather(1, ids[:, step : step + 1]))
    return torch.cat(out, 1)


def test_the_ratio_is_to_the_distribution_that_was_drawn_from(make_trainer, human, profile, monkeypatch):
    temperatures = []
    step = HumanSampler.step

    def noted(*args):
        found = step(*args)
        temperatures.append(found.temperature)
        return found

    monkeypatch.setattr(HumanSampler, "step", noted)
    trainer = make_trainer(rollouts=SampledRollouts(human, seed=0))
    model = trainer.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    (batch,) = trainer.batches
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(not torch.equal(before[name], trained[name]) for name in before)
    model.load_state_dict(before)
    model.eval()
    expected = dense(HumanEntropyLogitsProcessor(profile, "creative"), model, batch)
    real = batch["completion_mask"].bool()
    drawn_at = torch.cat(temperatures)
    assert 0.1 < drawn_at.median() < 0.9
    torch.testing.assert_close(batch["old_per_token_logps"][real], expected[real], atol=2e-3, rtol=1e-3)
    # And it is another one than the policy's own: without the correction every ratio of a first step would be 1.
    with torch.no_grad():
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        logits = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    own = logits[:, batch["prompt_ids"].shape[1] - 1 : -1].gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    assert (own - batch["old_per_token_logps"])[real].abs().mean() > 0.1


def test_a_plain_draw_is_the_policy_itself(make_trainer):
    trainer = make_trainer(GRPOTrainer, SampledRollouts(seed=0), temperature=0.8)
    trainer.train()
    (batch,) = trainer.batches
    assert "old_per_token_logps" not in batch  # the trainer's own log-probabilities are right
    assert batch["completion_ids"].shape[0] == 4
    again = make_trainer(GRPOTrainer, SampledRollouts(seed=0), temperature=0.8)
    # What the model brings along must not come between the policy and the draw either.
    again.model.generation_config.repetition_penalty = 1.8
    again.model.generation_config.no_repeat_ngram_size = 1
    again.train()
    assert torch.equal(again.batches[0]["completion_ids"], batch["completion_ids"])


def test_a_trainer_that_would_not_know_is_refused(make_trainer, human):
    with pytest.raises(InputError, match=r"log-probabilities of the untouched policy.*SampledGRPOTrainer"):
        make_trainer(GRPOTrainer, SampledRollouts(human)).train()


def test_rows_that_the_trainer_names_are_drawn_plainly(make_trainer, human, profile):
    is_human = [True, False, False, True]

    class Named(SampledGRPOTrainer):
        def human_rows(self, n):
            assert n == 4
            return is_human

    trainer = make_trainer(Named, SampledRollouts(human, seed=0), temperature=0.8)
    model = trainer.model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer.train()
    (batch,) = trainer.batches
    model.load_state_dict(before)
    ids, mask = (torch.cat([batch[f"prompt_{name}"], batch[f"completion_{name}"]], 1) for name in ("ids", "mask"))
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, attention_mask=mask).logits[:, batch["prompt_ids"].shape[1] - 1 : -1] / 0.8
    plain = logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    sampled = dense(HumanEntropyLogitsProcessor(profile, "creative"), model, batch)
    rows, real = torch.tensor(is_human), batch["completion_mask"].bool()
    expected = torch.where(rows.unsqueeze(1), sampled, plain)
    torch.testing.assert_close(batch["old_per_token_logps"][real], expected[real], atol=2e-3, rtol=1e-3)
    assert (sampled - plain)[real].abs().mean() > 0.1


def test_vllm_that_is_not_installed_is_one_line(make_trainer, monkeypatch):
    monkeypatch.setattr("ugap.errors.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"ugap\[vllm\]"):
        make_trainer(use_vllm=True)


@pytest.mark.parametrize(("name", "value"), [("top_p", 0.9), ("min_p", 0.1), ("repetition_penalty", 1.2)])
def test_settings_that_change_what_is_drawn_from_are_refused(make_trainer, name, value):
    with pytest.raises(InputError, match=f"{name}={value} changes what is drawn from"):
        make_trainer(GRPOTrainer, SampledRollouts(), **{name: value}).train()


def test_samplers_that_make_no_rollouts(make_model, make_profile):
    profile = make_profile(make_model("llama"))
    with pytest.raises(InputError, match="weight 0 is greedy"):
        SampledRollouts(HumanEntropyLogitsProcessor(profile, "creative", 0.0, draw=True))
    with pytest.raises(InputError, match="draw=True"):
        SampledRollouts(HumanEntropyLogitsProcessor(profile, "creative"))
