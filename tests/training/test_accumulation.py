"""A step is the same however its rows are spread over micro-batches and processes: gradients and logged figures."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from ugap.training import (
    FactualityReward,
    UncertaintyGRPOConfig,
    UncertaintyGRPOTrainer,
    UncertaintyReward,
    UncertaintySFTConfig,
    UncertaintySFTTrainer,
)

SPREAD = [(8, 1), (4, 2), (2, 4), (1, 8)]
SFT = {
    "cross-entropy": {"objective": "cross-entropy"},
    "gem": {"objective": "gem"},
    "constraint": {"objective": "cross-entropy", "constraint_limit": 0.1, "constraint_initial": 10.0},
    "creative": {"mode": "creative", "entropy_share": 0.8},
    "all": {"weight": 0.3, "kl_weight": 2.0, "constraint_limit": 0.1, "constraint_initial": 10.0},
}
# What is measured and not computed, or says how the rows are spread.
OTHERS = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "step_time",
    "total_flos",
    "train_loss",
}


class Kept(TrainerCallback):
    """The gradient of every step."""

    def __init__(self, model):
        self.model, self.steps = model, []

    def on_pre_optimizer_step(self, *_, **__):
        self.steps.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).clone())


def moved(trainer):
    """The policy's adapter away from nothing, so that it differs from its base."""
    torch.manual_seed(0)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return trainer


def one_step(trainer):
    """The gradient of one step and what was logged, by name."""
    kept = Kept(trainer.model)
    trainer.add_callback(kept)
    moved(trainer).train()
    logged = {name: value for log in trainer.state.log_history for name, value in log.items()}
    return kept.steps[0], {name: value for name, value in logged.items() if name not in OTHERS}


def assert_same(one, other, figures, expected):
    assert float((one - other).norm() / other.norm()) < 1e-5
    assert figures.keys() == expected.keys()
    assert figures == pytest.approx(expected, rel=1e-5, abs=1e-6)


GRPO = {
    "functional KL": {"functional_beta": 2.0, "target_entropy_coef": 0.0, "constraint_limit": 0.3},
    "entropy": {"target_entropy_coef": 1.0},
    "dapo and all": {"functional_beta": 0.5, "target_entropy_coef": 0.5, "constraint_limit": 0.3},
}
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "max_grad_norm": 0.0,
}


@pytest.fixture(scope="module")
def rows(human_texts):
    """Six creative rows and two functional ones, of 4 words or 40."""
    texts = [" ".join(text.split()[: (4, 40)[i % 2]]) for i, text in enumerate(human_texts[:8])]
    return Dataset.from_list(
        [{"text": t, "domain": "functional" if i > 5 else "creative"} for i, t in enumerate(texts)]
    )


@pytest.fixture
def sft(base_model, tokenizer, rows, tmp_path):
    """`sft(batch, steps, **config)`: a trainer of which a step is all the rows."""

    def make(batch, steps, **config):
        spread = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        args = UncertaintySFTConfig(str(tmp_path), **{**SETTINGS, **spread, **config})
        lora = LoraConfig(target_modules="all-linear", r=4)
        return UncertaintySFTTrainer(
            base_model(), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer, peft_config=lora
        )

    return make


@pytest.mark.parametrize("config", SFT.values(), ids=SFT)
def test_sft(config, sft):
    gradient, figures = one_step(sft(*SPREAD[0], **config))
    assert gradient.norm() > 1e-3
    for spread in SPREAD[1:]:
        found, its = one_step(sft(*spread, **config))
        assert_same(found, gradient, its, figures)


@pytest.mark.parametrize("config", SFT.values(), ids=SFT)
def test_sft_is_evaluated_as_a_whole(config, sft):
    expected = moved(sft(8, 1, per_device_eval_batch_size=8, **config)).evaluate()
    for batch in (1, 3):
        found = moved(sft(8, 1, per_device_eval_batch_size=batch, **config)).evaluate()
        same = [name for name in expected if not name.endswith(("runtime", "per_second", "time"))]
        assert [found[name] for name in same] == pytest.approx([expected[name] for name in same], rel=1e-5, abs=1e-6)


class Lucky(FactualityReward):
    """One that varies, whatever a random model says."""

    def __call__(self, prompts, completions, completion_ids=None, *, domain=None, **_):
        pairs = zip(completions, domain, strict=True)
        return [float(len(text) % 2) if own == "functional" else None for text, own in pairs]


@pytest.fixture
def grpo(base_model, tokenizer, prompts, human_profile, tmp_path):
    """`grpo(batch, steps, **config)`: a trainer of which a step is eight completions, always the same."""

    def roll(questions, trainer):
        told = iter(range(10, 400))
        said = [[next(told) for _ in range(2 + 7 * (i % 2))] for i in range(len(questions))]
        return {"prompt_ids": trainer._tokenize_prompts(questions)[0], "completion_ids": said, "logprobs": None}

    def make(batch, steps, **config):
        spread = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        own = {"num_generations": 2, "max_completion_length": 12, "shuffle_dataset": False, "top_k": 0}
        return UncertaintyGRPOTrainer(
            base_model(),
            [UncertaintyReward(human_profile), Lucky()],
            UncertaintyGRPOConfig(str(tmp_path), **{**SETTINGS, **own, **spread, **config}),
            train_dataset=prompts,
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules="all-linear", r=4),
            rollout_func=roll,
        )

    return make


@pytest.mark.parametrize("config", GRPO.values(), ids=GRPO)
def test_grpo(config, grpo):
    gradient, figures = one_step(grpo(*SPREAD[0], **config))
    assert gradient.norm() > 1e-3
    for spread in SPREAD[1:]:
        found, its = one_step(grpo(*spread, **config))
        its["entropy"] = figures["entropy"]  # TRL's own, a mean over micro-batches
        assert_same(found, gradient, its, figures)
