"""Preference pairs for DPO: the best and the worst of the policy's own continuations, ranked by a reward.

- *Creative pairs.* The policy continues each prompt several times, and the reward ranks the continuations. The best and
  the worst make a pair if their rewards differ enough. A pair within the reward's noise would teach noise. The reward
  sees the continuations of 64 prompts together, so that it can tell a varied policy from a narrow one.
- *Functional pairs.* A fact with its right and a wrong answer, so that the policy keeps its knowledge.

Rows hold the drawn token ids in addition to the texts. TRL's `DPOTrainer` would tokenise the texts anew and end each
with the end token, even where a continuation stops in the middle of a sentence; `PreferenceTrainer` takes the
ids.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOTrainer

from ugap.data.domain import CREATIVE, FUNCTIONAL
from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.scoring.tokenise import bos_ids, encode
from ugap.training.data import start_with_bos
from ugap.training.evaluation.card import MeasuredCard
from ugap.training.samples import Sample, over_processes, sample_continuations

POOL = 64  # prompts whose continuations are rewarded together
IDS = ("prompt_ids", "chosen_ids", "rejected_ids")

Reward = Callable[..., Sequence[float | None]]


def creative_pairs(
    policy: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    prompts: Sequence[str],
    *,
    samples_per_prompt: int = 4,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    min_margin: float = 0.1,
    batch_size: int = 16,
    seed: int = 0,
    kinds: Sequence[str | None] | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[dict[str, Any]]:
    """Let the policy continue prompts, rank the continuations, and pair the best with the worst.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The policy in eval mode, not sharded.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        reward (`Callable`): A reward as TRL's GRPO calls it, such as a bound
            [`UncertaintyReward`][ugap.training.UncertaintyReward]. Samples for which it is None or NaN are left out.
        prompts (`Sequence[str]`): Creative prompts.
        samples_per_prompt (`int`, *optional*, defaults to `4`): Continuations of each.
        temperature (`float`, *optional*, defaults to `1.0`): Temperature of the draws.
        max_new_tokens (`int`, *optional*, defaults to `64`): Longest continuation in tokens.
        min_margin (`float`, *optional*, defaults to `0.1`): Smallest difference of the two rewards, above 0.
        batch_size (`int`, *optional*, defaults to `16`): Continuations drawn at once.
        seed (`int`, *optional*, defaults to `0`): Seed of the draws.
        kinds (`Sequence[str or None]`, *optional*): Kind of text of each prompt, which the reward gets as a column.
        advance (`Callable[[int], object]`, *optional*): Called with the number of samples drawn since the last call.

    Returns:
        `list[dict]`: Rows `prompt`, `chosen`, `rejected`, `chosen_reward`, `rejected_reward`, `domain`, `prompt_ids`,
        `chosen_ids`, `rejected_ids`; none for a prompt whose rewards differ too little.

    Raises:
        InputError: If there is no pair at all, or a setting is out of range.
    """
    if samples_per_prompt < 2:
        raise InputError(f"samples_per_prompt is {samples_per_prompt}, and a pair needs 2")
    if not 0 < min_margin < math.inf:
        raise InputError(f"min_margin is {min_margin}, and a pair needs rewards that differ")
    samples = sample_continuations(
        policy,
        tokenizer,
        prompts,
        {"temperature": temperature},
        max_new_tokens=max_new_tokens,
        per_prompt=samples_per_prompt,
        batch_size=batch_size,
        seed=seed,
        advance=advance,
    )

    def work(number: int) -> list[dict[str, Any] | None]:
        begin = number * POOL
        pool = samples[begin : begin + POOL]
        known = None if kinds is None else list(zip(pool, kinds[begin : begin + POOL], strict=True))
        columns = {} if known is None else {"kind": [kind for group, kind in known for _ in group]}
        rewards = iter(rewarded([sample for group in pool for sample in group], reward, **columns))
        return [best_and_worst(group, [next(rewards) for _ in group], min_margin) for group in pool]

    # Rounded up: the last pool may be smaller.
    pools = over_processes(-(-len(samples) // POOL), work)
    pairs = [pair for pool in pools for pair in pool if pair is not None]
    if not pairs:
        raise InputError(
            f"no prompt has two of {samples_per_prompt} continuations whose rewards differ by {min_margin}: "
            "lower min_margin or draw more"
        )
    return pairs


def rewarded(samples: Sequence[Sample], reward: Reward, **columns: Any) -> Sequence[float | None]:
    """The rewards of continuations that are judged together."""
    return reward(
        [sample.prompt for sample in samples],
        [sample.text for sample in samples],
        [sample.ids for sample in samples],
        domain=[CREATIVE] * len(samples),
        **columns,
    )


def best_and_worst(
    samples: Sequence[Sample], rewards: Sequence[float | None], min_margin: float
) -> dict[str, Any] | None:
    """The pair of one prompt, or `None` if the rewards of its samples differ by less than `min_margin`."""
    ranked = [
        (value, sample)
        for value, sample in zip(rewards, samples, strict=True)
        if value is not None and math.isfinite(value)
    ]
    if not ranked:
        return None
    (best, chosen), (worst, rejected) = max(ranked, key=lambda pair: pair[0]), min(ranked, key=lambda pair: pair[0])
    if best - worst < min_margin:
        return None
    return {
        "prompt": chosen.prompt,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "chosen_reward": float(best),
        "rejected_reward": float(worst),
        "domain": CREATIVE,
        "prompt_ids": chosen.prompt_ids,
        "chosen_ids": chosen.ids,
        "rejected_ids": rejected.ids,
    }


def functional_pairs(
    facts: Sequence[Fact], tokenizer: PreTrainedTokenizerBase, n: int, *, seed: int = 0
) -> list[dict[str, Any]]:
    """`n` pairs of facts: the right answer against a wrong one, another one each time that a fact repeats.

    Args:
        facts (`Sequence[Fact]`): Facts to hold: the half of the probe that evaluations do not ask.
        tokenizer (`PreTrainedTokenizerBase`): The policy's tokenizer.
        n (`int`): Pairs.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Returns:
        `list[dict]`: Rows as in `creative_pairs`, with rewards 1 and 0.
    """
    rng = random.Random(seed)
    bos = bos_ids(tokenizer)
    rows: list[dict[str, Any]] = []
    # Rounded up: the last pass may be cut.
    for number in range(-(-n // max(1, len(facts)))):
        for fact in rng.sample(list(facts), len(facts)):
            chosen, rejected = f" {fact.answer}.", f" {fact.wrong[number % len(fact.wrong)]}."
            # Tokenised together with the prompt, as scoring does it.
            right, wrong = (encode(tokenizer, text, fact.prompt, bos=bos) for text in (chosen, rejected))
            rows.append(
                {
                    "prompt": fact.prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    "chosen_reward": 1.0,
                    "rejected_reward": 0.0,
                    "domain": FUNCTIONAL,
                    "prompt_ids": right.context,
                    "chosen_ids": right.token_ids,
                    "rejected_ids": wrong.token_ids,
                }
            )
    return rows[:n]


class PreferenceTrainer(MeasuredCard, DPOTrainer):
    """TRL's `DPOTrainer`, which takes tokenised pairs as they are: `prompt_ids`, `chosen_ids`, `rejected_ids`.

    Other data are tokenised as in TRL, with a BOS before the prompt if the tokenizer has one. The model card gets the
    measured gap, see `ugap.training.evaluation.card.MeasuredCard`.
    """

    _tag_names = ["trl", "dpo", "ugap"]  # noqa: RUF012  (as TRL declares it)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, *args: Any, **kwargs: Any) -> Any:
        # Before TRL tokenises anything.
        start_with_bos(processing_class)
        if isinstance(dataset, Dataset) and set(IDS) <= set(dataset.column_names):
            return dataset
        # Other data need TRL's own tokenisation.
        return super()._prepare_dataset(dataset, processing_class, *args, **kwargs)
