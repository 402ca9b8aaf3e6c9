"""GRPO toward human uncertainty: one reward for closeness to people, one for right answers."""

import sys
from dataclasses import dataclass, replace
from typing import Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.reward import (
    HumanOptions,
    base_scorer,
    frozen_scorer,
    human_of,
    kind_of_all,
    read_human,
    uncertainty_reward,
)
from ugap.cli.training import (
    DataOptions,
    EvaluationOptions,
    PolicyOptions,
    check_trackers,
    data_of,
    decoding_of,
    in_one_line,
    policy_of,
    say,
    settings_of,
    train,
)
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling import HumanEntropyLogitsProcessor, profile_of
from ugap.sampling.batch import suppressed_tokens
from ugap.training import (
    FactualityReward,
    SampledRollouts,
    UncertaintyGRPOConfig,
    UncertaintyGRPOTrainer,
    grpo_dataset,
)
from ugap.training.policy import Policy
from ugap.training.run_folder import open_run

DESCRIPTION = """\
Fine-tune a model toward human uncertainty on its own completions (GRPO).

Completions of creative prompts are rewarded for being distributed as human texts, answers to facts for being right.

examples:
  ugap train grpo --model smollm2-135m-instruct --data stories.jsonl --temperature 0.7 --constraint_margin 0.02
  ugap train grpo --config grpo_smollm2.yaml --data stories.jsonl --output_dir runs/grpo
  ugap train grpo --config grpo_smollm2.yaml --data stories.jsonl --output_dir runs/grpo --resume_from_checkpoint yes
  ugap train grpo --accelerate multi_gpu --num_processes 8 --model NAME --scorer NAME --data stories.jsonl

Options come from the command line or from a YAML file (--config). Without --scorer, the frozen base of the policy
scores the completions, and no second model is loaded. The output folder gets the adapter, checkpoints, a model card
with the gap before and after, ugap_gap.jsonl (every evaluation of the gap) and ugap_run.json (all settings)."""

NAME = "grpo"
CONFIG = UncertaintyGRPOConfig
DEFAULTS: dict[str, Any] = {"max_completion_length": 64}


@dataclass(kw_only=True)
class Arguments(EvaluationOptions, HumanOptions, DataOptions, PolicyOptions):
    """Arguments of `ugap train grpo`, in addition to those of the trainer's config."""

    per_text: int = option("prompts of one text, at most", default=4, group="data")
    answers: Literal["exact", "contrastive"] = option(
        "a completion is right if it starts with the answer (exact), or names it before a wrong one (contrastive)",
        default="exact",
        group="rewards",
    )
    rollouts: Literal["policy", "human"] = option(
        "draw completions from the policy, or at human uncertainty", default="policy", group="rewards"
    )


def run(arguments: Arguments, config: UncertaintyGRPOConfig) -> None:
    """Train.

    Raises:
        InputError: The input is bad, or most rewards of a step are NaN.
    """
    like = read_human(arguments)
    if arguments.full and arguments.rollouts == "human":
        raise InputError("rollouts at human uncertainty need the human profile of the policy, which --full changes")
    checkpoint = open_run(config.output_dir, config.resume_from_checkpoint, settings_of(NAME, arguments, like))
    # Evaluations decode as training does, unless --eval_decoding says otherwise.
    evaluated_by = decoding_of(arguments.eval_decoding, {"temperature": config.temperature})
    check_trackers(config)
    policy = policy_of(arguments, config)
    data = data_of(arguments, policy.tokenizer)
    dataset = grpo_dataset(
        data.texts,
        data.facts,
        policy.tokenizer,
        prefix_tokens=arguments.prefix_tokens,
        max_tokens=config.max_completion_length,
        per_text=arguments.per_text,
        functional_share=arguments.functional_share,
        seed=config.seed,
    )
    domains = list(dataset["domain"])
    say(f"prompts: {', '.join(f'{domains.count(domain)} {domain}' for domain in sorted(set(domains)))}")
    scorer = frozen_scorer(arguments, config)
    profile, kind = human_of(arguments, scorer or base_scorer(policy), like)
    uncertainty = uncertainty_reward(arguments, config, scorer, (profile, kind), like)
    rewards = [uncertainty, FactualityReward(arguments.answers)]
    processor = None
    if arguments.rollouts == "human":
        # --profile belongs to the scorer, which is the policy's base unless --scorer names another model.
        base = base_scorer(policy)
        own, kind = (profile, kind) if scorer is None else human_of(replace(arguments, profile=None), base, like)
        processor = sampler(policy, own, kind)
        if arguments.eval_decoding is None:
            evaluated_by = {"human_weight": 1.0, "human_kind": kind, "human_profile": own}
    with in_one_line():
        trainer = UncertaintyGRPOTrainer(
            policy.model,
            rewards,
            config,
            train_dataset=dataset,
            processing_class=policy.tokenizer,
            peft_config=policy.lora,
            # Drawn with torch's own generator, whose state a checkpoint holds.
            rollout_func=SampledRollouts(processor),
        )
    train(
        NAME,
        trainer,
        arguments,
        data,
        checkpoint=checkpoint,
        scorer=scorer,
        decoding=evaluated_by,
        like=like,
        human=(profile, kind_of_all(arguments, like)),
    )


def sampler(policy: Policy, profile: HumanProfile, kind: str) -> HumanEntropyLogitsProcessor:
    """The sampler of `--rollouts human`, with the human profile of the policy's base."""
    # With a new adapter, the trainer wraps the model later.
    model = policy.model if policy.lora is not None else policy.model.get_base_model()
    suppressed = suppressed_tokens(model, policy.tokenizer)
    return HumanEntropyLogitsProcessor(profile_of(model, profile), kind, 1.0, draw=True, suppress_tokens=suppressed)


if __name__ == "__main__":
    sys.exit(main(["train", "grpo", *sys.argv[1:]]))
