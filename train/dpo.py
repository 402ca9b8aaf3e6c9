"""DPO toward human uncertainty, on pairs of the policy's own continuations, ranked by the reward."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig

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
    Data,
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
from ugap.data.domain import CREATIVE
from ugap.errors import InputError
from ugap.progress import progress_bar
from ugap.study.excerpts import cut_excerpts
from ugap.training import UncertaintyReward
from ugap.training.policy import Policy
from ugap.training.preferences import PreferenceTrainer, creative_pairs, functional_pairs
from ugap.training.run_folder import made_once, note_run, open_run

DESCRIPTION = """\
Fine-tune a model toward human uncertainty on preferences among its own continuations (DPO).

Among continuations of a creative prompt, the nearest to people is preferred to the farthest. For a fact, the right
answer is preferred to a wrong one.

examples:
  ugap train dpo --model smollm2-135m-instruct --data stories.jsonl --sample_temperature 0.7
  ugap train dpo --config dpo_smollm2.yaml --data stories.jsonl --output_dir runs/dpo
  ugap train dpo --config dpo_smollm2.yaml --data stories.jsonl --output_dir runs/dpo --resume_from_checkpoint yes

Options come from the command line or from a YAML file (--config). The pairs are drawn and ranked before training. The
output folder gets pairs.jsonl, the adapter, checkpoints, a model card with the gap before and after, ugap_gap.jsonl
(every evaluation of the gap) and ugap_run.json (all settings)."""

NAME = "dpo"
CONFIG = DPOConfig
DEFAULTS: dict[str, Any] = {}
PAIRS = "pairs.jsonl"


@dataclass(kw_only=True)
class Arguments(EvaluationOptions, HumanOptions, DataOptions, PolicyOptions):
    """Arguments of `ugap train dpo`, in addition to those of the trainer's config."""

    prompts: int = option("creative prompts", default=256, group="pairs")
    per_text: int = option("prompts of one text, at most", default=4, group="pairs")
    samples_per_prompt: int = option("continuations of each prompt, two of which make a pair", default=4, group="pairs")
    sample_temperature: float = option("temperature of the continuations", default=1.0, group="pairs")
    sample_tokens: int = option("longest continuation, in tokens", default=64, group="pairs")
    min_margin: float = option("smallest difference of the rewards of a pair", default=0.1, group="pairs")


def run(arguments: Arguments, config: DPOConfig) -> None:
    """Train.

    Raises:
        InputError: The input is bad, or no two continuations differ enough.
    """
    like = read_human(arguments)
    settings = settings_of(NAME, arguments, like)
    # Before anything is loaded: a folder with another run is refused at once.
    checkpoint = open_run(config.output_dir, config.resume_from_checkpoint, settings)
    evaluated_by = decoding_of(arguments.eval_decoding, {"temperature": arguments.sample_temperature})
    if not 0 <= arguments.functional_share < 1:
        raise InputError(f"functional_share is {arguments.functional_share}, not in [0, 1)")
    check_trackers(config)
    policy = policy_of(arguments, config)
    data = data_of(arguments, policy.tokenizer)
    scorer = frozen_scorer(arguments, config)
    ranking = scorer or base_scorer(policy)
    profile, kind = human_of(arguments, ranking, like)
    reward = uncertainty_reward(arguments, config, ranking, (profile, kind), like, length=arguments.sample_tokens)
    reward.bind(policy.model, policy.tokenizer)
    # Before the continuations are drawn.
    reward.check(Dataset.from_list([{"domain": text.domain, "kind": text.kind} for text in data.texts]))
    # Recorded before the pairs, so that a run that ends while drawing them can resume.
    note_run(config.output_dir, settings)
    pairs = made_once(Path(config.output_dir) / PAIRS, lambda: make_pairs(arguments, config, policy, data, reward))
    n = sum(pair["domain"] == CREATIVE for pair in pairs)
    margin = sum(pair["chosen_reward"] - pair["rejected_reward"] for pair in pairs if pair["domain"] == CREATIVE) / n
    say(f"pairs: {n} creative, with rewards {margin:.2f} apart, {len(pairs) - n} functional")
    with in_one_line():
        trainer = PreferenceTrainer(
            policy.model,
            args=config,
            train_dataset=Dataset.from_list(pairs),
            processing_class=policy.tokenizer,
            peft_config=policy.lora,
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


def make_pairs(
    arguments: Arguments, config: Any, policy: Policy, data: Data, reward: UncertaintyReward
) -> list[dict[str, Any]]:
    """Pairs of continuations and of facts."""
    excerpts = cut_excerpts(
        [text for text in data.texts if text.domain == CREATIVE],
        policy.tokenizer,
        prefix_tokens=arguments.prefix_tokens,
        max_new_tokens=arguments.sample_tokens,
        min_new_tokens=1,
        limit=arguments.prompts,
        per_text=arguments.per_text,
    )
    if not excerpts:
        raise InputError("the texts have no creative domain to train on")
    with progress_bar(disable=config.disable_tqdm) as bar:
        # The bar shows the share of this process.
        total = len(excerpts) * arguments.samples_per_prompt // config.world_size
        task = bar.add_task("continuations for pairs", total=total)
        pairs = creative_pairs(
            policy.model,
            policy.tokenizer,
            reward,
            [excerpt.prefix for excerpt in excerpts],
            samples_per_prompt=arguments.samples_per_prompt,
            temperature=arguments.sample_temperature,
            max_new_tokens=arguments.sample_tokens,
            min_margin=arguments.min_margin,
            seed=config.seed,
            kinds=[excerpt.kind for excerpt in excerpts],
            advance=lambda n: bar.advance(task, n),
        )
    # From share = functional / (creative + functional).
    wanted = round(len(pairs) * arguments.functional_share / (1 - arguments.functional_share))
    return pairs + functional_pairs(data.facts, policy.tokenizer, wanted if data.facts else 0, seed=config.seed)


if __name__ == "__main__":
    sys.exit(main(["train", "dpo", *sys.argv[1:]]))
