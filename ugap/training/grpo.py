"""GRPO toward human uncertainty: rewards by domain, factuality as a constraint, and a hold on the policy's entropy.

The trainer below reads from top to bottom as one step: completions, rewards, advantages, references, loss. TRL calls
the stages; a `Step` holds what they know.

- *Advantages.* From each reward, the mean of its group of completions is taken. The rest is divided by one scale of the
  batch: the deviation within groups. The rewards are then weighted, then summed. So a weight acts between domains.
  Normalising after the weighting would cancel the weight of a reward that alone applies to its rows. Dividing each
  group by its own deviation would blow up the noise of a group whose completions are equally good. The multiplier of
  the constraint weighs the constrained reward too.
- *Entropy term.* A reward on the text does not see the policy's own entropy. A deterministic text can have any
  surprisal, and the policy's entropy collapses while the reward rises. So the loss gets `coef * mean((entropy -
  target)^2)` over completions. The term is two-sided, and each completion has its own target. The policy's entropy is
  that of the distribution that is drawn from, at the sampling temperature.
- *Targets.* On a creative prompt, the target is the expected surprisal of people there: the calibration curve at the
  frozen scorer's entropies over the human continuation. Without a continuation, it is the human level of the domain. On
  a functional prompt, the target is the entropy of the policy's frozen base over the same completion.
- *Divergence.* The surprisal of the policy's text to the scorer has to meet people. It is the policy's entropy plus its
  divergence from the scorer: `E[-log S] = H + KL(policy || S)`. So creative targets are lower by that divergence, or
  the policy would overshoot by as much as it has learned. The estimate is the scorer's less the policy's mean surprisal
  over all completions that are drawn together. Both are of the drawn token ids without the end token. A scorer with
  another vocabulary reads the text, and its mean is over its own tokens.
- *Means are of the step*, however its completions are spread over micro-batches and processes. Where several steps
  share the completions drawn together, their counts are taken to be equal, as in TRL's own loss.
"""

import logging
import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather, is_peft_model
from peft.utils.other import TrainableTokensWrapper
from trl.extras.profiling import profiling_context

from ugap.data.domain import CREATIVE, FUNCTIONAL
from ugap.errors import InputError
from ugap.scoring.shared import as_base
from ugap.training.constrained import ConstrainedTrainer
from ugap.training.data import (
    check_domains,
    check_evaluation_domains,
    creative_mask,
    evaluation_sets,
    functional_rows,
    start_with_bos,
)
from ugap.training.entropy_band import EntropyBandCallback
from ugap.training.grpo_checks import (
    BASE_ROWS,
    NanRewards,
    check_answers,
    check_rewards,
    constrained_reward,
    factual_cost,
)
from ugap.training.grpo_config import UncertaintyGRPOConfig
from ugap.training.policy import switch_off_dropout
from ugap.training.rewards import RewardDetails, UncertaintyReward
from ugap.training.rollouts import SampledGRPOTrainer

logger = logging.getLogger(__name__)

EPSILON = 1e-4  # added to the scale, as in TRL


@dataclass(eq=False)
class Step:
    """What the stages of a step know of the completions that are drawn together.

    Args:
        rows (`list[dict]`): The row of the data set for each of the `B` completions of this process.
        creative (`Tensor` of shape `(B,)`, bool): Which of them are creative.
        rewards (`Tensor` of shape `(N, K)`, *optional*): Each reward of the completions of all processes; NaN where a
            reward does not apply.
        details (`list[RewardDetails or None]`): How the uncertainty reward judged the completions of this process.
        forward (`tuple[Tensor, Tensor]`, *optional*): Log-probabilities and entropies `(b, T)` of a micro-batch of the
            loss, with gradient.
    """

    rows: list[dict[str, Any]]
    creative: torch.Tensor
    rewards: torch.Tensor | None = None
    details: list[RewardDetails | None] = field(default_factory=list)
    forward: tuple[torch.Tensor, torch.Tensor] | None = None


class UncertaintyGRPOTrainer(ConstrainedTrainer, SampledGRPOTrainer):
    """TRL's `GRPOTrainer` with advantages by domain, the constraint, and the entropy term of this module.

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`): As in TRL.
        reward_funcs (`Callable` or `list`): Functions as in TRL, neither async nor models: [`UncertaintyReward`][] for
            creative rows, [`FactualityReward`][ugap.training.FactualityReward] for functional ones, or others. An
            [`UncertaintyReward`][] without a scorer takes the policy's frozen base.
        args (`UncertaintyGRPOConfig`): Settings.
        train_dataset (`Dataset` or `IterableDataset`): Rows with `prompt` and `domain`, and the columns of the rewards
            (`answer` on functional rows). `human_completion`, where a row has it, sets the entropy's target.
        **kwargs: As in TRL's `GRPOTrainer`.

    A tokenizer that has a BOS puts it before a prompt, as the scorer does.

    Where the entropy term or `functional_beta` compares the policy with a frozen model, its dropout is switched off.

    A reward that is NaN is left out, as TRL does with `None`, counted, and logged as `rewards/{name}/nan`. If more than
    half of the rewards of a step are NaN, the run ends with a checkpoint and `train` raises.

    The log gets, in addition to TRL's metrics, `entropy/{domain}`, `entropy/{domain}_target`, `entropy/divergence`,
    `functional/kl` and `constraint/{metric}/{cost,limit,lambda}`.

    Raises:
        InputError: Before training, if rows have no domain, a constraint has no functional rows, no factuality reward
            or one of weight 0, a reward is async or a model, no completion can match an answer, tokens of the output
            head are trained, or a profile is of another scorer. The rows of a stream are checked when they are read.
    """

    _tag_names = ["trl", "grpo", "ugap"]  # noqa: RUF012  (as TRL declares it)
    step: Step

    def __init__(
        self, model: Any, reward_funcs: Any, args: UncertaintyGRPOConfig, *, train_dataset: Any, **kwargs: Any
    ):
        rewards = list(reward_funcs) if isinstance(reward_funcs, list) else [reward_funcs]
        check_domains(train_dataset, constrained=args.constrained)
        check_evaluation_domains(kwargs.get("eval_dataset"))
        check_rewards(rewards)
        check_answers(rewards, {"the training set": train_dataset, **evaluation_sets(kwargs.get("eval_dataset"))})
        super().__init__(model, rewards, args, train_dataset=train_dataset, **kwargs)
        start_with_bos(self.processing_class)
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy.get_output_embeddings(), TrainableTokensWrapper):
            raise InputError("trainable_token_indices reach the output head, which TRL's loss cannot read then")
        if args.target_entropy_coef or args.functional_beta:
            switch_off_dropout(policy)
        self._watch_constraint(args.constraint())
        self.nan_rewards = NanRewards(self)
        self.add_callback(self.nan_rewards)
        self.add_callback(EntropyBandCallback(args.entropy_low, args.entropy_high, patience=args.entropy_patience))
        self.factual = constrained_reward(rewards, self.reward_weights.tolist()) if args.constrained else None
        uncertain = [reward for reward in rewards if isinstance(reward, UncertaintyReward)]
        for reward in uncertain:
            reward.bind(policy, self.processing_class)
            reward.check(train_dataset)
        self.uncertainty = next((reward for reward in uncertain if reward.domain == CREATIVE), None)
        if args.target_entropy_coef and self.uncertainty is None:
            raise InputError(
                "the entropy term has its targets from an UncertaintyReward: add one, or set its coef to 0"
            )
        self._has_base = self.ref_model is not None or is_peft_model(policy)
        if args.functional_beta and not self._has_base:
            raise InputError(
                "functional_beta needs the frozen base, and a policy that is trained whole has none: set it to 0, or "
                "beta above 0, which loads one"
            )
        self._tokens_shared = self.uncertainty is not None and self.uncertainty.first.shares_tokens(
            self.processing_class
        )

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train, as TRL does, after the cost of the untrained model is measured for the constraint.

        Raises:
            InputError: If more than half of the rewards of a step were NaN; what was trained is saved.
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
        if self.nan_rewards.failure is not None:
            raise InputError(self.nan_rewards.failure)
        return out

    def base_cost(self, most: int = BASE_ROWS) -> float:
        """Share of wrong completions on functional rows of the training set, by the policy with its present weights.

        Args:
            most (`int`, *optional*, defaults to `64`): Rows to complete, once each.
        """
        assert self.factual is not None
        return factual_cost(self, self.reward_funcs[self.factual], functional_rows(self.train_dataset, most))

    # 1. Completions. TRL calls this once for the completions that are drawn together.

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # The rows of a stream are seen here for the first time, so their domains are checked here.
        creative = torch.tensor(creative_mask(inputs)).to(self.accelerator.device)
        step = self.step = Step(inputs, creative)
        output = super()._generate_and_score_completions(inputs)  # draws, then calls _calculate_rewards
        output["advantages"] = self._advantages(step)
        if self.args.target_entropy_coef or self.args.functional_beta:
            output |= {"creative": creative, **self._references(step, output)}
        return output

    def human_rows(self, n: int) -> list[bool]:
        """The creative rows: the answers to facts are drawn plainly, as their cost is measured."""
        return self.step.creative.tolist()

    # 2. Rewards. Replaces TRL's method, which keeps only the values of a reward.

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        step = self.step
        # As in TRL: every column of the data set, and the means to log.
        names = [name for name in inputs[0] if name not in ("prompt", "completion")]
        columns: dict[str, Any] = {name: [row[name] for row in inputs] for name in names} | {
            "prompts": prompts,
            "completions": completions,
            "completion_ids": completion_ids_list,
            "trainer_state": self.state,
            "log_extra": self._log_completion_extra,
            "log_metric": self._log_metric,
        }
        if self.environments is not None:
            columns["environments"] = self.environments
        local = torch.zeros(len(prompts), len(self.reward_funcs), device=self.accelerator.device)  # (B, K)
        for k, (reward, name) in enumerate(zip(self.reward_funcs, self.reward_func_names, strict=True)):
            with profiling_context(self, name):
                if isinstance(reward, UncertaintyReward) and reward is self.uncertainty:
                    step.details = reward.details(**columns, levels=self.args.target_entropy_coef > 0)
                    values = [None if one is None else one.reward for one in step.details]
                else:
                    values = reward(**columns)
            if len(values) != len(prompts):
                raise InputError(f"reward {name} returned {len(values)} values for {len(prompts)} completions")
            # TRL marks a reward that does not apply by NaN, so real NaNs are counted before.
            applying = [value for value in values if value is not None]
            self.nan_rewards.counts[k] += torch.tensor([sum(map(math.isnan, applying)), len(applying)])
            local[:, k] = torch.tensor([math.nan if value is None else value for value in values])
        if local.isnan().all(1).any():
            logger.warning("no reward applies to a row, whose completions then teach nothing")
        if self.constraint is not None and self.model.training:
            right = local[:, self.factual]
            right = right[~right.isnan()]
            self.constraint.observe(float((1 - right).sum()), len(right))
        step.rewards = gather(local)
        return step.rewards

    # 3. Advantages.

    def _advantages(self, step: Step) -> torch.Tensor:
        """Advantages `(B,)` of this process's completions."""
        assert step.rewards is not None
        weights = self.reward_weights.clone()
        if self.constraint is not None:
            weights[self.factual] *= self.constraint.value
        group = self.num_generations if self.model.training else self.num_generations_eval
        weights = weights.to(step.rewards.device)
        advantages = weighted_advantages(step.rewards, weights, group, scale=self.args.scale_rewards)
        logged = self._logs["advantages"]  # a deque of bounded length, with TRL's advantages at its end
        for _ in range(min(len(advantages), len(logged))):
            logged.pop()
        logged.extend(advantages.tolist())
        n = len(step.rows)
        return advantages[self.accelerator.process_index * n :][:n]

    # 4. References: what the two terms of the loss compare the policy with.

    @torch.no_grad()
    def _references(self, step: Step, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        """What the loss compares the policy with, and how many tokens and completions of all processes it compares.

        Returns:
            `base_logps` `(B, T)`, the base's log-probabilities, NaN on creative rows; `entropy_target` `(B,)`, nats,
            NaN where there is none; `n_functional_tokens` and `n_targets`.
        """
        mask = output["completion_mask"].bool()
        base_logps, target = self._base_on_functional(step, output)
        if self.args.target_entropy_coef:
            levels = [one.judged[0].human_level for one in step.details if one is not None]
            target[step.creative] = torch.tensor(levels).to(target)
            ahead = self._ahead(step, output)
        else:
            ahead = torch.full_like(target, math.nan)
        estimated = ahead.isfinite()
        total = torch.where(estimated, ahead, 0.0).sum().double()
        n_tokens = (mask & base_logps.isfinite()).sum()
        n_targets = (target.isfinite() & mask.any(1)).sum()
        # One reduction: every process has to take part in it, whatever its rows are.
        sums = self._reduced(torch.stack([total, estimated.sum(), n_tokens, n_targets]))
        if self.args.target_entropy_coef:
            self._add_to_log(self._mode, {"entropy/divergence": (total, float(estimated.sum()))})
            divergence = (sums[0] / sums[1].clamp(min=1)).clamp(min=0)
            target = torch.where(step.creative, target - divergence, target).clamp(min=0).to(target)
        return {
            "base_logps": base_logps,
            "entropy_target": target,
            "n_functional_tokens": sums[2],
            "n_targets": sums[3],
        }

    def _base_on_functional(self, step: Step, output: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """The frozen base's log-probabilities `(B, T)` and mean entropies `(B,)` of functional completions, nats.

        NaN in creative rows, and everywhere without a base.
        """
        shape, device = output["completion_ids"].shape, self.accelerator.device
        logps, entropy = torch.full(shape, math.nan, device=device), torch.full(shape[:1], math.nan, device=device)
        if not self._has_base:
            return logps, entropy
        functional = (~step.creative).nonzero().flatten()
        rows = _some(functional)
        base, context = (
            (self.ref_model, nullcontext())
            if self.ref_model is not None
            else (self.model, as_base(self.accelerator.unwrap_model(self.model)))
        )
        with context:
            row_logps, row_entropies = self._completion_values(base, output, rows, entropy=True)
        if len(functional):
            logps[functional] = row_logps.to(logps.dtype)
            entropy[functional] = _row_means(row_entropies, output["completion_mask"][rows]).to(entropy.dtype)
        return logps, entropy

    def _ahead(self, step: Step, output: dict[str, Any]) -> torch.Tensor:
        """The scorer's less the policy's mean surprisal `(B,)` of creative completions, nats per token; else NaN.

        The mean over completions estimates the divergence of the policy from the scorer.
        """
        ends = torch.tensor(self.eos_token_ids, device=output["completion_ids"].device)
        compared = output["completion_mask"].bool() & ~torch.isin(output["completion_ids"], ends)  # (B, T)
        ahead = self._scorer_nlls(step, output, compared).to(self.accelerator.device)
        creative = step.creative.nonzero().flatten()
        rows = _some(creative)
        logps, _ = self._completion_values(self.model, output, rows)
        if len(creative):
            ahead[creative] += _row_means(logps, compared[rows]).to(ahead.dtype)
        return torch.where(step.creative & compared.any(1), ahead, math.nan)

    def _scorer_nlls(self, step: Step, output: dict[str, Any], compared: torch.Tensor) -> torch.Tensor:
        """Mean surprisal `(B,)` of creative completions to the scorer, nats per token; NaN where there is none."""
        assert self.uncertainty is not None
        judged = [None if one is None else one.judged[0] for one in step.details]
        if not self._tokens_shared:
            # The means are over the scorer's own tokens of the text.
            return torch.tensor([math.nan if one is None or one.nll is None else one.nll for one in judged])
        prompts = _ids_of(output["prompt_ids"], output["prompt_mask"].bool())
        drawn = _ids_of(output["completion_ids"], compared & step.creative.unsqueeze(1))
        return torch.tensor(self.uncertainty.first.token_nlls(prompts, drawn, judged))

    def _completion_values(self, model: Any, output: dict[str, Any], rows: torch.Tensor, entropy: bool = False) -> Any:
        """Log-probabilities `(R, T)` and, if asked for, entropies of the completions of some rows, nats."""
        ids, mask = (
            torch.cat([output[f"prompt_{name}"], output[f"completion_{name}"]], 1)[rows] for name in ("ids", "mask")
        )
        batch_size = self.args.per_device_train_batch_size
        return super()._get_per_token_logps_and_entropies(
            model, ids, mask, output["completion_ids"].shape[1], batch_size=batch_size, compute_entropy=entropy
        )[:2]

    # 5. Loss. TRL calls this for every micro-batch.

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)  # on the advantages; its forward pass is the next method
        assert self.step.forward is not None
        (logps, entropies), self.step.forward = self.step.forward, None  # the step outlives the graph
        completion_mask = inputs["completion_mask"]
        mask = completion_mask * inputs["tool_mask"] if "tool_mask" in inputs else completion_mask
        # Replaces TRL's metric, which is a mean over means of micro-batches.
        figures: dict[str, tuple[torch.Tensor, int]] = {"entropy": ((entropies * mask).sum(), int(mask.sum()))}
        if self.args.functional_beta:
            # TRL's estimate of KL(policy || base): r - 1 - log r, with r = base / policy; never negative.
            log_ratio = inputs["base_logps"] - logps
            functional = completion_mask.bool() & log_ratio.isfinite()  # (b, T)
            log_ratio = torch.where(functional, log_ratio, 0.0)
            kl = (log_ratio.exp() - 1 - log_ratio).sum()
            loss = loss + self.args.functional_beta * self._part_of_mean(kl, inputs["n_functional_tokens"])
            figures["functional/kl"] = kl, int(functional.sum())
        if self.args.target_entropy_coef:
            target, creative = inputs["entropy_target"], inputs["creative"]
            entropy = _row_means(entropies, completion_mask)
            has_target = target.isfinite() & completion_mask.bool().any(1)  # (b,)
            distance = torch.where(has_target, entropy - target.nan_to_num(), 0.0)
            term = self._part_of_mean((distance**2).sum(), inputs["n_targets"])
            loss = loss + self.args.target_entropy_coef * term
            for domain, rows in ((CREATIVE, has_target & creative), (FUNCTIONAL, has_target & ~creative)):
                figures[f"entropy/{domain}"] = entropy[rows].sum(), int(rows.sum())
                figures[f"entropy/{domain}_target"] = target[rows].sum(), int(rows.sum())
        self._add_to_log(self._mode, figures)
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self.step.forward = out[:2]
        return out

    def _part_of_mean(self, total: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        """A micro-batch's part of a mean over the step, as in TRL's `dapo`.

        Args:
            total (`torch.Tensor` of shape `()`): The sum over the micro-batch.
            n (`torch.Tensor` of shape `()`): The count over the completions that were drawn together, in all processes.
        """
        # Gradients are averaged over processes, and the completions of several steps may be drawn together.
        n = n.clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            n = n * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return total / n

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"


def weighted_advantages(
    rewards: torch.Tensor, weights: torch.Tensor, group: int, *, scale: str = "batch"
) -> torch.Tensor:
    """Advantages of completions from several rewards: centred within each group, scaled, weighted, then summed.

    The last step of TRL's `normalize_then_sum`, a normalisation over the batch, is left out: it would divide the
    weights by each other. Twice the weight of a reward is twice its part of the advantage.

    Args:
        rewards (`torch.Tensor` of shape `(N, K)`): Rewards; the completions of one prompt are neighbours. NaN where a
            reward does not apply.
        weights (`torch.Tensor` of shape `(K,)`): Weight of each reward.
        group (`int`): Completions of one prompt.
        scale (`str`, *optional*, defaults to `"batch"`): What each reward is divided by: its deviation within groups
            over the whole batch, that of each `"group"`, or nothing (`"none"`).

    Returns:
        `torch.Tensor` of shape `(N,)`: 0 where no reward applies.

    Example:
        >>> rewards = torch.tensor([[0.0, torch.nan], [1.0, torch.nan], [torch.nan, 1.0], [torch.nan, 0.0]])
        >>> [round(a, 2) for a in weighted_advantages(rewards, torch.tensor([1.0, 2.0]), 2).tolist()]
        [-0.71, 0.71, 1.41, -1.41]
    """
    grouped = rewards.view(-1, group, rewards.shape[1])  # (prompts, completions, K)
    applies = ~grouped.isnan()
    n = applies.sum(1, keepdim=True)
    mean = grouped.nan_to_num().sum(1, keepdim=True) / n.clamp(min=1)
    centred = torch.where(applies, grouped - mean, 0.0)
    squares, degrees = (centred**2).sum(1, keepdim=True), (n - 1).clamp(min=0)
    if scale == "batch":
        squares, degrees = squares.sum(0, keepdim=True), degrees.sum(0, keepdim=True)
    if scale != "none":
        centred = centred / (squares.div(degrees.clamp(min=1)).sqrt() + EPSILON)
    return (centred * weights).sum(-1).view(-1)


def _some(rows: torch.Tensor) -> torch.Tensor:
    """The rows, or the first row where there are none: sharded models wait until every process runs them."""
    return rows if len(rows) else rows.new_zeros(1)


def _ids_of(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]


def _row_means(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)
