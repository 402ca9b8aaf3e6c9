"""GRPO toward human uncertainty: rewards by domain, factuality as a constraint, and a hold on the policy's entropy.

- *Advantages.* Each reward is normalised within its group of completions, then weighted, then summed. A weight between
  domains thus acts: where rewards are normalised after the weighting, the weight of a reward that alone serves its rows
  cancels out. The reward that the constraint is about is weighed by the multiplier as well.
- *Entropy term.* A reward on the text does not see the policy's own entropy: a deterministic text can have any
  surprisal, and the policy's entropy collapses while the reward rises. So `coef * mean((entropy - target)^2)` over
  completions is added to the loss, two-sided, with a target for each. On a creative prompt it is how surprising people
  are expected to be there: the calibration curve at the frozen scorer's entropies over the human continuation, or where
  there is none the human level of the domain. On a functional prompt it is the entropy of the policy's frozen base over
  the same completion. The policy's entropy is that of the distribution that is drawn from: at the sampling temperature.
- *Whose surprisal.* What has to meet people is how surprising the policy's text is to the scorer: the policy's entropy
  plus its divergence from the scorer, `E[-log S] = H + KL(policy || S)`. So on creative prompts the target is less by
  that divergence, estimated when they are drawn from all completions that are drawn together (the scorer's less the
  policy's mean surprisal). Both are of the token ids that were drawn, without the end token. A scorer of other tokens
  reads the text, and its mean is over tokens of its own. Without the divergence the policy would overshoot by as much
  as it has learned.
- *Means are of the step*, however its completions are spread over micro-batches and processes. Where several steps
  share the completions drawn together, their counts are taken to be equal, as TRL does for its own loss.
"""

import inspect
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import IterableDataset
from peft.utils.other import TrainableTokensWrapper
from transformers import (
    TemperatureLogitsWarper,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig
from trl.models import unwrap_model_for_generation

from ugap.errors import InputError
from ugap.sampling import DrawLogitsProcessor
from ugap.sampling.batch import continue_contexts, drawn_config
from ugap.training.constrained import ConstrainedConfig, ConstrainedTrainer
from ugap.training.data import start_with_bos
from ugap.training.domains import (
    CREATIVE,
    FUNCTIONAL,
    check_domains,
    check_evaluation_domains,
    evaluation_sets,
    functional_rows,
    is_creative,
)
from ugap.training.entropy_band import EntropyBandCallback
from ugap.training.rewards import FactualityReward, UncertaintyReward
from ugap.training.rollouts import SampledGRPOTrainer
from ugap.training.shared_scorer import as_base, evaluating, switch_off_dropout

logger = logging.getLogger(__name__)

BASE_ROWS = 64
EPSILON = 1e-4  # beside the spread of a group, as in TRL


@dataclass
class UncertaintyGRPOConfig(ConstrainedConfig, GRPOConfig):
    """Arguments of [`UncertaintyGRPOTrainer`][], beside those of TRL's `GRPOConfig`."""

    multi_objective_aggregation: str = field(
        default="normalize_then_sum",
        metadata={"help": "Each reward is normalised within its group before it is weighted; nothing else is taken."},
    )
    constraint_margin: float | None = field(
        default=None,
        metadata={
            "help": "Instead of constraint_limit: the limit is the model's own cost before training plus this margin."
        },
    )
    target_entropy_coef: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the two-sided entropy term: the squared distance, in nats, of a completion's mean "
            "entropy from its target. 0 switches it off: the policy's entropy is then held by nothing."
        },
    )
    functional_beta: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the KL divergence from the frozen base on functional rows alone, estimated as TRL does "
            "for its `beta`, which is of all rows."
        },
    )
    entropy_low: float = field(
        default=0.3, metadata={"help": "The run ends when the policy's entropy (nats per token) falls below this."}
    )
    entropy_high: float = field(
        default=6.0, metadata={"help": "The run ends when the policy's entropy rises above this."}
    )
    entropy_patience: int = field(default=3, metadata={"help": "Logs in a row outside of the band that end the run."})

    def __post_init__(self) -> None:
        """Check what can be checked without data.

        Raises:
            InputError: If a value is out of its range, or a setting would leave the constraint without effect.
        """
        super().__post_init__()
        if self.multi_objective_aggregation != "normalize_then_sum":
            raise InputError(
                f"multi_objective_aggregation={self.multi_objective_aggregation!r}: weighted before it is normalised, "
                "a reward of one domain has no weight, and the constraint would do nothing: use 'normalize_then_sum'"
            )
        if self.scale_rewards != "group":
            raise InputError(f"scale_rewards={self.scale_rewards!r}: each reward is scaled by its group: leave 'group'")
        if self.constraint_limit is not None and self.constraint_margin is not None:
            raise InputError("constraint_limit and constraint_margin both say the limit: give one")
        if not 0 <= self.target_entropy_coef < math.inf:
            raise InputError(f"target_entropy_coef is {self.target_entropy_coef}, not a number from 0")
        if not 0 <= self.functional_beta < math.inf:
            raise InputError(f"functional_beta is {self.functional_beta}, not a number from 0")
        if self.target_entropy_coef and (self.entropy_coef or self.use_adaptive_entropy):
            raise InputError("target_entropy_coef and TRL's entropy bonus pull at one entropy: switch one of them off")


class UncertaintyGRPOTrainer(ConstrainedTrainer, SampledGRPOTrainer):
    """TRL's `GRPOTrainer` with advantages by domain, the constraint, and the entropy term of this module.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in TRL.
        reward_funcs (`Callable` or `list`): Functions as in TRL, neither async nor models: [`UncertaintyReward`][] for
            creative rows, [`FactualityReward`][] for functional ones, or others. An [`UncertaintyReward`][] without a
            scorer takes the policy's frozen base.
        args (`UncertaintyGRPOConfig`): Settings.
        train_dataset (`Dataset` or `IterableDataset`): Rows with `prompt` and `domain`, and what the rewards need
            (`answer` on functional rows). `human_completion`, where there is one, sets the entropy's target.
        **kwargs: As in TRL's `GRPOTrainer`.

    A tokenizer that has a BOS is told to put it before a prompt, as the scorer does.

    Where the entropy term or `functional_beta` compares the policy with a frozen model, its dropout is switched off.

    A reward that is NaN is left out, as TRL does with one that is None, counted, and logged as `rewards/{name}/nan`; if
    it is more than half of the rewards of a batch, the run ends with a checkpoint and `train` raises.

    In the log, beside what TRL logs, are `entropy/{domain}`, `entropy/{domain}_target`, `entropy/divergence`,
    `functional/kl` and `constraint/{metric}/{cost,limit,lambda}`.

    Raises:
        InputError: Before training, if rows have no domain, none is functional while a constraint is asked for,
            no reward is about factuality then or its weight is 0, a reward is async or a model, no completion can match
            an answer, tokens of the output head are trained, or a profile is of another scorer. Of a stream, rows are
            refused when they are seen.
    """

    _tag_names = ["trl", "grpo", "ugap"]  # noqa: RUF012  (as TRL declares it)

    def __init__(
        self, model: Any, reward_funcs: Any, args: UncertaintyGRPOConfig, *, train_dataset: Any, **kwargs: Any
    ):
        constrained = args.constrained
        check_domains(train_dataset, constrained=constrained)
        check_evaluation_domains(kwargs.get("eval_dataset"))
        self.watched = [
            _Watched(reward) for reward in (reward_funcs if isinstance(reward_funcs, list) else [reward_funcs])
        ]
        self._check_answers({"the training set": train_dataset, **evaluation_sets(kwargs.get("eval_dataset"))})
        super().__init__(model, list(self.watched), args, train_dataset=train_dataset, **kwargs)
        start_with_bos(self.processing_class)
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy.get_output_embeddings(), TrainableTokensWrapper):
            raise InputError("trainable_token_indices reach the output head, which TRL's loss cannot read then")
        if args.target_entropy_coef or args.functional_beta:
            switch_off_dropout(policy)
        self._watch_constraint(args.constraint())
        self.add_callback(_Steps(self))
        self.add_callback(EntropyBandCallback(args.entropy_low, args.entropy_high, patience=args.entropy_patience))
        rewards = [watched.reward for watched in self.watched]
        self.factual = self._constrained_reward(rewards) if constrained else None
        for reward in rewards:
            if isinstance(reward, UncertaintyReward):
                reward.bind(policy, self.processing_class)
        self.uncertainty = next((reward for reward in rewards if isinstance(reward, UncertaintyReward)), None)
        if args.target_entropy_coef and self.uncertainty is None:
            raise InputError(
                "the entropy term has its targets from an UncertaintyReward: add one, or set its coef to 0"
            )
        if args.functional_beta and not self._has_base:
            raise InputError(
                "functional_beta needs the frozen base, and a policy that is trained whole has none: set it to 0, or "
                "beta above 0, which loads one"
            )
        self._tokens_shared = self.uncertainty is not None and self.uncertainty.shares_tokens(self.processing_class)
        self.failure: str | None = None
        self._rewards_per_func: torch.Tensor | None = None
        self._logps: torch.Tensor | None = None
        self._entropies: torch.Tensor | None = None
        self._scorer_nll: list[float | None] = []

    def _check_answers(self, sets: dict[str, Any]) -> None:
        factual = [watched.reward for watched in self.watched if isinstance(watched.reward, FactualityReward)]
        for name, dataset in sets.items():
            if not isinstance(dataset, IterableDataset):
                known = [column for column in ("domain", "answer", "wrong") if column in dataset.column_names]
                for reward in factual:
                    reward.check(dataset.select_columns(known), name)

    @property
    def _has_base(self) -> bool:
        return self.ref_model is not None or is_peft_model(self.accelerator.unwrap_model(self.model))

    def _constrained_reward(self, rewards: Sequence[Any]) -> int:
        """The place of the reward whose cost is constrained."""
        places = [i for i, reward in enumerate(rewards) if isinstance(reward, FactualityReward)]
        if not places:
            raise InputError("a constraint is asked for, and no reward is a FactualityReward: its cost is unknown")
        if self.reward_weights[places[0]] <= 0:
            raise InputError(
                "the weight of the FactualityReward is 0: the multiplier of the constraint would do nothing"
            )
        return places[0]

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, as TRL does, after a look at what the constraint is up against.

        Raises:
            InputError: If more than half of the rewards of a batch were NaN; what was trained is saved.
        """
        if self.constraint is not None and not resume_from_checkpoint:
            cost = self.base_cost()
            if self.args.constraint_margin is not None:
                self.constraint.set_limit(cost + self.args.constraint_margin)
            elif cost > self.args.constraint_limit:
                logger.warning(
                    "the model violates the limit before training: its cost is %.3f, the limit %.3f",
                    cost,
                    self.args.constraint_limit,
                )
        out = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.failure is not None:
            raise InputError(self.failure)
        return out

    def base_cost(self, most: int = BASE_ROWS) -> float:
        """Share of wrong completions on functional rows of the training set by the policy as it is now.

        Args:
            most (`int`, *optional*, defaults to `64`): Rows that are tried, each once.
        """
        assert self.factual is not None
        rows = functional_rows(self.train_dataset, most)
        generator = torch.Generator(self.accelerator.device).manual_seed(self.args.seed)
        warpers = [TemperatureLogitsWarper(self.temperature)] if self.temperature != 1 else []
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            evaluating(model),
        ):
            ids = continue_contexts(
                model,
                self.processing_class,
                self._tokenize_prompts([row["prompt"] for row in rows])[0],
                drawn_config(self.max_completion_length),
                [*warpers, DrawLogitsProcessor(generator)],
            )
        said = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
        right = self.watched[self.factual].reward(prompts=[row["prompt"] for row in rows], completions=said, **columns)
        told = [value for value in right if value is not None and not math.isnan(value)]
        # Every process tries the same rows; where their draws differ, all go on with one number.
        correct, n = self._reduced(torch.tensor([float(sum(told)), float(len(told))])).tolist()
        if not n:
            raise InputError("the FactualityReward could not judge a single functional row of the training set")
        return 1 - correct / n

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewards_per_func = rewards
        if self.uncertainty is not None:
            # What the reward wants logged: the surprisal of this process's completions to the scorer.
            self._scorer_nll = list(self._pending_extra_logs[f"{self.uncertainty.__name__}_nll"][-len(prompts) :])
        if self.constraint is not None and self.model.training:
            right = rewards[self._own_rows(len(prompts)), self.factual]
            told = right[~right.isnan()]
            self.constraint.observe(float((1 - told).sum()), len(told))
        return rewards

    def _own_rows(self, n: int) -> slice:
        """This process's `n` rows among those of all."""
        begin = self.accelerator.process_index * n
        return slice(begin, begin + n)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # The rows of a stream are seen here for the first time.
        creative = [is_creative(row.get("domain")) for row in inputs]
        output = super()._generate_and_score_completions(inputs)
        assert self._rewards_per_func is not None
        group = self.num_generations if self.model.training else self.num_generations_eval
        weights = self.reward_weights.clone()
        if self.constraint is not None:
            weights[self.factual] *= self.constraint.value
        advantages = weighted_advantages(self._rewards_per_func, weights.to(self._rewards_per_func.device), group)
        for _ in range(min(len(advantages), len(self._logs["advantages"]))):
            self._logs["advantages"].pop()
        self._logs["advantages"].extend(advantages.tolist())
        output["advantages"] = advantages[self._own_rows(len(inputs))]
        if not (self.args.target_entropy_coef or self.args.functional_beta):
            return output
        output["creative"] = torch.tensor(creative).to(self.accelerator.device)
        base_logps, base_entropy = self._base_on_functional(output)
        mask = output["completion_mask"].bool()
        if self.args.functional_beta:
            output["base_logps"] = base_logps
            output["n_functional_tokens"] = self._reduced((mask & base_logps.isfinite()).sum())
        if self.args.target_entropy_coef:
            output["entropy_target"] = self._entropy_targets(inputs, base_entropy, self._divergence(output))
            output["n_targets"] = self._reduced((output["entropy_target"].isfinite() & mask.any(1)).sum())
        return output

    def _completion_values(self, model: Any, output: dict[str, Any], rows: torch.Tensor, entropy: bool = False) -> Any:
        """Log-probabilities `(R, T)` and, where asked for, entropies of the completions of some rows, nats."""
        ids, mask = (
            torch.cat([output[f"prompt_{name}"], output[f"completion_{name}"]], 1)[rows] for name in ("ids", "mask")
        )
        batch_size = self.args.per_device_train_batch_size
        return super()._get_per_token_logps_and_entropies(
            model, ids, mask, output["completion_ids"].shape[1], batch_size=batch_size, compute_entropy=entropy
        )[:2]

    @torch.no_grad()
    def _base_on_functional(self, output: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the frozen base makes of functional completions; NaN in other rows, and where there is no base.

        Returns:
            Log-probabilities of the tokens `(B, T)`, and the mean entropy of each completion `(B,)`, nats.
        """
        shape, device = output["completion_ids"].shape, self.accelerator.device
        logps, entropy = torch.full(shape, math.nan, device=device), torch.full(shape[:1], math.nan, device=device)
        if not self._has_base:
            return logps, entropy
        functional = (~output["creative"]).nonzero().flatten()
        rows = _some(functional)
        base, context = (
            (self.ref_model, nullcontext())
            if self.ref_model is not None
            else (self.model, as_base(self.accelerator.unwrap_model(self.model)))
        )
        with context:
            own_logps, entropies = self._completion_values(base, output, rows, entropy=True)
        if len(functional):
            logps[functional] = own_logps.to(logps.dtype)
            entropy[functional] = _row_means(entropies, output["completion_mask"][rows]).to(entropy.dtype)
        return logps, entropy

    @torch.no_grad()
    def _divergence(self, output: dict[str, Any]) -> float:
        """How much more surprising creative completions are to the scorer than to the policy that drew them.

        The mean over the completions of all processes, nats per token; at least 0.
        """
        compared = self._compared_tokens(output)
        ahead = self._scorer_nlls(output, compared).to(self.accelerator.device)
        creative = output["creative"].nonzero().flatten()
        rows = _some(creative)
        logps, _ = self._completion_values(self.model, output, rows)
        if len(creative):
            ahead[creative] += _row_means(logps, compared[rows]).to(ahead.dtype)
        told = output["creative"] & ahead.isfinite() & compared.any(1)
        sums = torch.stack([torch.where(told, ahead, 0.0).sum().double(), told.sum().double()])
        self._add_to_log(self._mode, {"entropy/divergence": (sums[0], float(sums[1]))})
        total, n = self._reduced(sums).tolist()
        return max(0.0, total / n) if n else 0.0

    def _entropy_targets(
        self, inputs: Sequence[dict[str, Any]], base_entropy: torch.Tensor, divergence: float
    ) -> torch.Tensor:
        """Target `(B,)` of the mean entropy of every completion, nats per token; NaN where there is none."""
        assert self.uncertainty is not None
        targets = base_entropy.clone()
        creative = [i for i, row in enumerate(inputs) if row["domain"] == CREATIVE]
        prompts = self.uncertainty.as_read([row["prompt"] for row in inputs], self)
        levels = self.uncertainty.human_levels(
            [prompts[i] for i in creative], [inputs[i].get("human_completion") for i in creative]
        )
        targets[creative] = torch.tensor(levels, dtype=targets.dtype, device=targets.device) - divergence
        return targets.clamp(min=0)

    def _compared_tokens(self, output: dict[str, Any]) -> torch.Tensor:
        """Which tokens `(B, T)` the policy and the scorer are compared on: all that are trained on, but the end."""
        ends = torch.tensor(self.eos_token_ids, device=output["completion_ids"].device)
        return output["completion_mask"].bool() & ~torch.isin(output["completion_ids"], ends)

    def _scorer_nlls(self, output: dict[str, Any], compared: torch.Tensor) -> torch.Tensor:
        """Mean surprisal `(B,)` of creative completions to the scorer, nats per token; NaN where there is none.

        A scorer of other tokens has read the text, and its mean is over tokens of its own.
        """
        assert self.uncertainty is not None
        if not self._tokens_shared:
            return torch.tensor([math.nan if value is None else value for value in self._scorer_nll])
        prompts = _rows_of(output["prompt_ids"], output["prompt_mask"].bool())
        completions = _rows_of(output["completion_ids"], compared & output["creative"].unsqueeze(1))
        return torch.tensor(self.uncertainty.token_nlls(prompts, completions))

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._logps, self._entropies = out[:2]
        return out

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        logps, entropies = self._logps, self._entropies
        self._logps = self._entropies = None
        assert logps is not None
        assert entropies is not None
        mask = (
            inputs["completion_mask"] if "tool_mask" not in inputs else inputs["completion_mask"] * inputs["tool_mask"]
        )
        # In the place of TRL's, which is a mean over means of micro-batches.
        self._add_to_log(self._mode, {"entropy": ((entropies * mask).sum(), int(mask.sum()))})
        if self.args.functional_beta:
            loss = loss + self.args.functional_beta * self._functional_kl(logps, inputs)
        if self.args.target_entropy_coef:
            loss = loss + self.args.target_entropy_coef * self._entropy_term(entropies, inputs)
        return loss

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _in_step(self, total: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        """The part of a mean over a step that a micro-batch has, as TRL's `dapo` has it.

        Args:
            total (`torch.Tensor` of shape `()`): The sum over the micro-batch.
            n (`torch.Tensor` of shape `()`): The count over the completions that were drawn together, in all processes.
        """
        # Gradients are averaged over processes, and completions of several steps may be drawn together.
        n = n.clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            n = n * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return total / n

    def _functional_kl(self, logps: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Mean over functional tokens of TRL's estimate of the divergence from the base, `r - 1 - log r`, nats."""
        log_ratio = inputs["base_logps"] - logps
        known = inputs["completion_mask"].bool() & log_ratio.isfinite()
        log_ratio = torch.where(known, log_ratio, 0.0)
        kl = (log_ratio.exp() - 1 - log_ratio).sum()
        self._add_to_log(self._mode, {"functional/kl": (kl, int(known.sum()))})
        return self._in_step(kl, inputs["n_functional_tokens"])

    def _entropy_term(self, entropies: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        """Mean over completions of the squared distance of their entropy from its target, nats²."""
        mask, target, creative = inputs["completion_mask"], inputs["entropy_target"], inputs["creative"]
        entropy = _row_means(entropies, mask)
        known = target.isfinite() & mask.bool().any(1)
        distance = torch.where(known, entropy - target.nan_to_num(), 0.0)
        self._add_to_log(
            self._mode,
            {
                f"entropy/{domain}{kind}": (values[rows].sum(), int(rows.sum()))
                for domain, rows in ((CREATIVE, known & creative), (FUNCTIONAL, known & ~creative))
                for kind, values in (("", entropy), ("_target", target))
            },
        )
        return self._in_step((distance**2).sum(), inputs["n_targets"])


def weighted_advantages(rewards: torch.Tensor, weights: torch.Tensor, group: int) -> torch.Tensor:
    """Advantages of completions from several rewards: normalised within each group, then weighted, then summed.

    The last step of TRL's `normalize_then_sum`, a normalisation over the batch, is left out: it would divide the
    weights by each other. Twice the weight of a reward is twice its part of the advantage.

    Args:
        rewards (`torch.Tensor` of shape `(B, K)`): Rewards, the completions of one prompt lying together; NaN where a
            reward does not apply.
        weights (`torch.Tensor` of shape `(K,)`): Weight of each reward.
        group (`int`): Completions of one prompt.

    Returns:
        `torch.Tensor` of shape `(B,)`: 0 where no reward applies.

    Example:
        >>> rewards = torch.tensor([[0.0, torch.nan], [1.0, torch.nan], [torch.nan, 1.0], [torch.nan, 0.0]])
        >>> [round(a, 2) for a in weighted_advantages(rewards, torch.tensor([1.0, 2.0]), 2).tolist()]
        [-0.71, 0.71, 1.41, -1.41]
    """
    grouped = rewards.view(-1, group, rewards.shape[1])
    told = ~grouped.isnan()
    n = told.sum(1, keepdim=True)
    filled = grouped.nan_to_num()
    mean = filled.sum(1, keepdim=True) / n.clamp(min=1)
    centred = torch.where(told, filled - mean, 0.0)
    spread = (centred**2).sum(1, keepdim=True).div((n - 1).clamp(min=1)).sqrt()
    return (centred / (spread + EPSILON) * weights).sum(-1).view(-1)


def _some(rows: torch.Tensor) -> torch.Tensor:
    """The rows, or the first where there is none: every process runs a model, and sharded ones wait for each other."""
    return rows if len(rows) else rows.new_zeros(1)


def _rows_of(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[own].tolist() for row, own in zip(ids, mask, strict=True)]


def _row_means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


class _Watched:
    """A reward function that counts its NaNs; TRL takes them for rows that the reward does not apply to."""

    def __init__(self, reward: Callable[..., Any]):
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)
        if isinstance(reward, torch.nn.Module) or not callable(reward):
            name = reward if isinstance(reward, str) else self.__name__
            raise InputError(f"reward {name}: this trainer takes functions, and no models")
        if inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__):
            raise InputError(f"reward {self.__name__}: this trainer takes no async functions")
        self.reward = reward
        self.told = self.nan = 0

    def __call__(self, **kwargs: Any) -> list[float | None]:
        out = self.reward(**kwargs)
        told = [value for value in out if value is not None]
        self.told += len(told)
        self.nan += sum(map(math.isnan, told))
        return [None if value is None or math.isnan(value) else value for value in out]


class _Steps(TrainerCallback):
    """Ends a run whose rewards are mostly NaN, behind the step in which they were."""

    def __init__(self, trainer: UncertaintyGRPOTrainer):
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count over processes, keep the counts for the log, and decide."""
        trainer = self.trainer
        local = torch.tensor([[float(watched.nan), float(watched.told)] for watched in trainer.watched])
        for watched, (nan, told) in zip(trainer.watched, trainer._reduced(local).tolist(), strict=True):
            watched.nan = watched.told = 0
            if told:
                trainer._metrics["train"][f"rewards/{watched.__name__}/nan"].append(nan)
            if nan > told / 2:
                trainer.failure = (
                    f"{watched.__name__}: {nan:.0f} of {told:.0f} rewards of step {state.global_step} are NaN; "
                    f"the run has ended, and what was trained is saved in {args.output_dir}"
                )
                control.should_training_stop = control.should_save = True
