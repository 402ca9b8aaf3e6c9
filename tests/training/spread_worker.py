"""Trainers of which a step is eight rows or completions, however they are spread over micro-batches and processes.

`python spread_worker.py FOLDER KIND BATCH STEPS OUT` is one process of a run; its rank is in the environment. It writes
the gradient of a step and what was logged. FOLDER holds a model, `rows.json`, `prompts.json` and `profile.json`.
"""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from ugap.profile import HumanProfile
from ugap.training import (
    FactualityReward,
    UncertaintyGRPOConfig,
    UncertaintyGRPOTrainer,
    UncertaintyReward,
    UncertaintySFTConfig,
    UncertaintySFTTrainer,
)

CONSTRAINT = {"constraint_limit": 0.1, "constraint_initial": 10.0}
SFT: dict[str, dict[str, Any]] = {
    "cross-entropy": {"objective": "cross-entropy"},
    "gem": {"objective": "gem"},
    "constraint": {"objective": "cross-entropy", **CONSTRAINT},
    "creative": {"mode": "creative", "entropy_share": 0.8},
    "all": {"weight": 0.3, "kl_weight": 2.0, **CONSTRAINT},
}
GRPO: dict[str, dict[str, Any]] = {
    "functional_beta": {"functional_beta": 2.0, "target_entropy_coef": 0.0, **CONSTRAINT},
    "entropy": {"target_entropy_coef": 1.0},
    "both": {"functional_beta": 0.5, "target_entropy_coef": 0.5, **CONSTRAINT},
    # Of two processes, each has half of the only group.
    "straddling": {"num_generations": 8, "target_entropy_coef": 0.0},
}
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "max_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "max_grad_norm": 0.0,
    "learning_rate": 0.0,
}
# Times, and what says how the rows are spread.
OTHERS = ("runtime", "per_second", "time", "total_flos", "train_loss")


class Lucky(FactualityReward):
    """One that varies, whatever a random model says."""

    def __call__(self, prompts, completions, completion_ids=None, *, domain=None, **_):
        pairs = zip(completions, domain, strict=True)
        return [float(len(text) % 2) if own == "functional" else None for text, own in pairs]


class Kept(TrainerCallback):
    """The gradient of every step."""

    def __init__(self, model):
        self.model, self.steps = model, []

    def on_pre_optimizer_step(self, *_, **__):
        self.steps.append(torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None]).clone())


def sft(model, tokenizer, rows, folder, batch, steps, **config):
    spread = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    args = UncertaintySFTConfig(str(folder), **{**SETTINGS, **spread, **config})
    lora = LoraConfig(target_modules="all-linear", r=4)
    return UncertaintySFTTrainer(
        model, args, train_dataset=rows, eval_dataset=rows, processing_class=copy.deepcopy(tokenizer), peft_config=lora
    )


def roll(questions, trainer):
    """Completions that hang on their place among those of all processes."""
    begin = trainer.accelerator.process_index * len(questions)
    said = [[*range(10 + 9 * i, 12 + 9 * i + 7 * (i % 2))] for i in range(begin, begin + len(questions))]
    return {"prompt_ids": trainer._tokenize_prompts(questions)[0], "completion_ids": said, "logprobs": None}


def grpo(model, tokenizer, prompts, profile, folder, batch, steps, **config):
    spread = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
    own = {"num_generations": 2, "max_completion_length": 12, "shuffle_dataset": False, "top_k": 0}
    return UncertaintyGRPOTrainer(
        model,
        [UncertaintyReward(profile), Lucky()],
        UncertaintyGRPOConfig(str(folder), **{**SETTINGS, **own, **spread, **config}),
        train_dataset=prompts,
        processing_class=copy.deepcopy(tokenizer),
        peft_config=LoraConfig(target_modules="all-linear", r=4),
        rollout_func=roll,
    )


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
    # TRL logs None for the mean of a reward that applies to no row.
    figures = {name: value for name, value in logged.items() if value is not None and not named(name, OTHERS)}
    return kept.steps[0], figures


def named(name, ends):
    return any(name == end or name.endswith(f"_{end}") for end in ends)


def main(folder: str, kind: str, batch: str, steps: str, out: str) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, prompts = (
        Dataset.from_list(json.loads((Path(folder) / f"{n}.json").read_text())) for n in ("rows", "prompts")
    )
    program, _, name = kind.partition(" ")
    if program == "sft":
        trainer = sft(model, tokenizer, rows, out, int(batch), int(steps), **SFT[name])
    else:
        profile = HumanProfile.load(Path(folder) / "profile.json")
        trainer = grpo(model, tokenizer, prompts, profile, out, int(batch), int(steps), **GRPO[name])
    gradient, figures = one_step(trainer)
    metrics = trainer.evaluate() if program == "sft" else {}
    evaluated = {name: value for name, value in metrics.items() if not named(name, OTHERS)}
    if trainer.is_world_process_zero():
        record = {"gradient": gradient.tolist(), "figures": figures, "evaluated": evaluated}
        Path(out, "record.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
