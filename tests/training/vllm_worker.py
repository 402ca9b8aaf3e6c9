"""Ratios of GRPO on vLLM: some steps of `ugap train grpo` with SmolLM2-135M-Instruct on a CPU.

`python tests/training/vllm_worker.py policy|human STEPS FOLDER` prints means over the completion tokens of a step.
`engine`: the probability that transformers draws the token with, over that of vLLM. `policy`: the token's probability
under the policy, over that of vLLM. Each is followed by the share of tokens for which it is outside [0.9, 1.1]. `loss`:
the ratio in the loss, before it is clipped.
"""

import json
import os
import sys
from typing import Any

import torch

from ugap.cli.main import main
from ugap.sampling.portable.human import HumanSampler, State
from ugap.sampling.portable.special import suppressed_tokens
from ugap.training.grpo import UncertaintyGRPOTrainer

SETTINGS = """
    train grpo --config grpo_smollm2.yaml --data demo --learning_rate 1e-3 --lr_scheduler_type constant --warmup_steps 0
    --max_completion_length 24 --logging_steps 1
    --eval_limit 2 --eval_tokens 16 --eval_facts 2 --use_vllm true --vllm_max_model_length 256
"""


class Ratios:
    """The table: a row for the creative and one for the functional completions of a step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    @torch.no_grad()
    def add(self, trainer: UncertaintyGRPOTrainer, batch: dict[str, Any]) -> None:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        n = batch["completion_ids"].shape[1]
        logits = trainer.model(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1].float()
        log_p = (logits / trainer.temperature).log_softmax(-1)
        own = log_p.gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
        real, creative, expected = batch["completion_mask"].bool(), trainer.step.creative, own.clone()
        processor = trainer.rollout_func.processor
        if processor is not None:
            for i in creative.nonzero().flatten().tolist():
                prompt = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
                suppressed = suppressed_tokens(
                    trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
                )
                sampler = HumanSampler.of(processor.prompts(prompt), processor.weight, suppress_tokens=suppressed)
                expected[i] = replayed(sampler, len(prompt), logits[i], batch["completion_ids"][i], real[i])
        drawn = batch["sampling_per_token_logps"]
        # The loss has one ratio to the old log-probabilities, and with TRL's correction another one.
        of_loss = (own - batch["old_per_token_logps"]).exp()
        if "importance_sampling_ratio" in batch:
            of_loss = of_loss * batch["importance_sampling_ratio"]
        for domain, rows in (("creative", creative), ("functional", ~creative)):
            if not rows.any():
                continue
            engine, policy = ((values - drawn).exp()[rows][real[rows]] for values in (expected, own))
            found = {
                "step": trainer.state.global_step,
                "domain": domain,
                "tokens": len(engine),
                "engine": float(engine.mean()),
                "outside": outside(engine),
                "policy": float(policy.mean()),
                "apart": outside(policy),
                "loss": float(of_loss[rows][real[rows]].mean()),
            }
            self.rows.append(found)


def outside(ratios: torch.Tensor) -> float:
    return float(((ratios < 0.9) | (ratios > 1.1)).float().mean())


def replayed(sampler: HumanSampler, n_prompt: int, logits: Any, tokens: Any, real: Any) -> torch.Tensor:
    """`log q` `(T,)` of the tokens of a text under the sampler; zeros after its end."""
    state, out = State.start([n_prompt]), torch.zeros(len(tokens))
    for t in range(int(real.sum())):
        row = logits[t : t + 1]
        step = sampler.step(row, state)
        out[t] = step.scores(row).log_softmax(-1)[0, tokens[t]]
        state = sampler.observe(state, step, step.surprisal_of(tokens[t : t + 1]))
    return out


def run(rollouts: str, steps: str, folder: str) -> list[dict[str, Any]]:
    ratios, generate = Ratios(), UncertaintyGRPOTrainer._generate_and_score_completions

    def noted(trainer: UncertaintyGRPOTrainer, inputs: Any) -> Any:
        batch = generate(trainer, inputs)
        ratios.add(trainer, batch)
        return batch

    UncertaintyGRPOTrainer._generate_and_score_completions = noted  # type: ignore[method-assign, assignment]
    status = main([*SETTINGS.split(), "--rollouts", rollouts, "--max_steps", steps, "--output_dir", folder])
    assert status == 0
    return ratios.rows


if __name__ == "__main__":
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    rows = run(*sys.argv[1:])
    print("step  domain      tokens  engine  outside  policy  outside  loss")
    for row in rows:
        ratios = "{engine:<7.4f} {outside:<8.3f} {policy:<7.4f} {apart:<8.3f} {loss:.4f}".format(**row)
        print("{step:<5} {domain:<11} {tokens:<7}".format(**row), ratios)
    print(json.dumps(rows))
