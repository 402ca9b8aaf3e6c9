"""Around the GRPO step: checks of the rewards, the cost of the base before training, and the stop for NaN rewards."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import IterableDataset
from transformers import (
    TemperatureLogitsWarper,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.models import unwrap_model_for_generation

from ugap.errors import InputError
from ugap.sampling import DrawLogitsProcessor
from ugap.sampling.batch import continue_contexts, drawn_config
from ugap.scoring.shared import evaluating
from ugap.training.factuality import FactualityReward

if TYPE_CHECKING:
    from ugap.training.grpo import UncertaintyGRPOTrainer

BASE_ROWS = 64

Reward = Callable[..., Sequence[float | None]]


def check_rewards(rewards: Sequence[Any]) -> None:
    """Refuse rewards that are no plain functions.

    Raises:
        InputError: If a reward is async or a model.
    """
    for reward in rewards:
        name = reward if isinstance(reward, str) else getattr(reward, "__name__", type(reward).__name__)
        if isinstance(reward, torch.nn.Module) or not callable(reward):
            raise InputError(f"reward {name}: this trainer takes functions, and no models")
        # An async __call__ of a class does not make its instances coroutine functions.
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
            raise InputError(f"reward {name}: this trainer takes no async functions")


def check_answers(rewards: Sequence[Reward], sets: Mapping[str, Any]) -> None:
    """Refuse answers that no completion can match.

    Args:
        rewards (`Sequence[Callable]`): The rewards of a trainer.
        sets (`Mapping[str, Dataset]`): Data sets by the name that errors use; streams are not read.

    Raises:
        InputError: As in `FactualityReward.check`.
    """
    for name, dataset in sets.items():
        if isinstance(dataset, IterableDataset):
            continue
        # Other columns, such as images, could be slow to decode.
        columns = [column for column in ("domain", "answer", "wrong") if column in dataset.column_names]
        for reward in rewards:
            if isinstance(reward, FactualityReward):
                reward.check(dataset.select_columns(columns), name)


def constrained_reward(rewards: Sequence[Reward], weights: Sequence[float]) -> int:
    """The index of the reward whose cost the constraint limits.

    Raises:
        InputError: If no reward is about factuality, or its weight is 0.
    """
    factual = next((i for i, reward in enumerate(rewards) if isinstance(reward, FactualityReward)), None)
    if factual is None:
        raise InputError("a constraint is asked for, and no reward is a FactualityReward: its cost is unknown")
    if weights[factual] <= 0:
        raise InputError("the weight of the FactualityReward is 0: the multiplier of the constraint would do nothing")
    return factual


def factual_cost(trainer: "UncertaintyGRPOTrainer", reward: Reward, rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of wrong completions of functional rows, one completion each, by the policy with its present weights.

    Args:
        trainer (`UncertaintyGRPOTrainer`): The trainer of the policy.
        reward (`Callable`): The factuality reward.
        rows (`Sequence[Mapping]`): The rows, the same in every process.

    Raises:
        InputError: If the reward can judge none of the rows.
    """
    # A generator of its own: measuring the cost must not shift the draws of the training.
    generator = torch.Generator(trainer.accelerator.device).manual_seed(trainer.args.seed)
    warpers = [TemperatureLogitsWarper(trainer.temperature)] if trainer.temperature != 1 else []
    prompts = [row["prompt"] for row in rows]
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as model,
        evaluating(model),
    ):
        ids = continue_contexts(
            model,
            trainer.processing_class,
            trainer._tokenize_prompts(prompts)[0],
            drawn_config(trainer.max_completion_length),
            [*warpers, DrawLogitsProcessor(generator)],
        )
    completions = trainer.processing_class.batch_decode(ids, skip_special_tokens=True)
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    rewards = reward(prompts=prompts, completions=completions, **columns)
    judged = [value for value in rewards if value is not None and not math.isnan(value)]
    # Draws can differ between processes, by rounding. The sums give all processes one number.
    right, n = trainer._reduced(torch.tensor([float(sum(judged)), float(len(judged))])).tolist()
    if not n:
        raise InputError("the FactualityReward could not judge a single functional row of the training set")
    return 1 - right / n


class NanRewards(TrainerCallback):
    """Ends a run at the step in which most values of a reward are NaN.

    Args:
        trainer (`UncertaintyGRPOTrainer`): The trainer, whose log gets `rewards/{name}/nan`.

    Attributes:
        counts (`Tensor` of shape `(K, 2)`): For each reward, in this process since the last step: the values that are
            NaN, and all values. The trainer adds to it.
        failure (`str` or `None`): Why the run was ended.
    """

    def __init__(self, trainer: "UncertaintyGRPOTrainer"):
        self.trainer = trainer
        self.failure: str | None = None
        self.counts = torch.zeros(len(trainer.reward_funcs), 2)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Sum the counts over processes, log them, and end the run where most rewards are NaN."""
        counts = self.trainer._reduced(self.counts).tolist()
        self.counts = torch.zeros_like(self.counts)
        for name, (n_nan, n) in zip(self.trainer.reward_func_names, counts, strict=True):
            if n:
                self.trainer._metrics["train"][f"rewards/{name}/nan"].append(n_nan)
            if n_nan > n / 2:
                self.failure = (
                    f"{name}: {n_nan:.0f} of {n:.0f} rewards of step {state.global_step} are NaN; "
                    f"the run has ended, and what was trained is saved in {args.output_dir}"
                )
                # An exception here would leave other processes waiting, and lose what was trained.
                control.should_training_stop = control.should_save = True
