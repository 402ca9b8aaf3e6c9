"""The uncertainty reward for TRL's GRPO: are a policy's completions distributed as human texts?

TRL calls a reward with `prompts, completions, completion_ids` and every other column of the data set. The reward gives
a number for each completion, or `None` for a row of another domain. Prompts and completions are strings, or lists of
chat messages. When a trainer calls, and the scorer shares the policy's vocabulary, the scorer reads the policy's own
token ids of a prompt. They come from the trainer's own method, with the chat template and its arguments.

[`UncertaintyReward`][] reads completions with frozen scorers (`ugap.training.judge`). It compares them with human texts
of their length, one by one and all together (`ugap.training.matching`).

Ready instances (`uncertainty_reward`, `surprisal_reward`, `entropy_reward`, `pmi_reward`, `factuality_reward`) serve
`trl grpo --reward_funcs ugap.training.rewards.NAME` and Python. A reward without a scorer takes the frozen base of a
PEFT policy. For another policy, it takes a frozen copy of the model that the policy was loaded from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.domain import CREATIVE
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.plain import FloatArray
from ugap.profile.profile import Selection
from ugap.profile.texts import FEATURES
from ugap.sampling.portable.special import special_tokens
from ugap.scoring import Scorer
from ugap.training.factuality import FactualityReward, Text, text_of
from ugap.training.judge import Judge, Judged, Prompt
from ugap.training.matching import WHOLE, Matched, match, with_length_rule

AnyScorer = Scorer | str | None
AnyProfile = HumanProfile | str | Path | None


class UncertaintyReward:
    """Whether completions are distributed as human texts are, under frozen scorers.

    The reward of a completion is `closeness + energy / 2`:

    - *Closeness* is `1 / (1 + max(0, d² - 1.28) / 4)`, with `d²` the squared Mahalanobis distance of the completion's
      features from their human mean, divided by the number of features. It is 1 inside the human region, where three
      human texts of four are.
    - *Energy* is the completion's mean distance to the other completions of the batch less that to human texts. Its
      mean is highest where completions vary as human texts do. Completions with equal prompts are a group.
    - *A short completion*, of less than 0.9 of the nominal length, gets the least reward of its group's whole ones less
      the share that it lacks. Stopping early cannot pay.

    The reward depends on the batch, and moves with the policy: read the logged `closeness` and `energy_distance`. Its
    mean is about 0.95 where people write, and less for any other distribution.

    Args:
        profiles (`HumanProfile`, `str` or `Path`, or a list, *optional*): Human profile of each scorer, or its file; by
            default the model's own, see [`profile_for`][ugap.profile.profile_for].
        scorers (`Scorer` or `str`, or a list, *optional*): The frozen scorers, or models' names to load when they are
            first needed. `None` is the policy's base, the default. The reward is the mean over scorers, each of which
            reads its own tokens.
        features (`Sequence[str]`, *optional*): Which features count, of `ugap.profile.texts.FEATURES`; by
            default all.
        domain (`str`, *optional*, defaults to `"creative"`): Rows of other domains get `None`. Without a column
            `domain`, all rows count.
        kind (`str` or `Mapping[str, float]`, *optional*): The human texts that completions are compared with: a kind,
            a domain or a mixture of kinds of the profiles, or `auto`: the prompt decides. By default each row's column
            `kind`, and without one `domain`: all of its kinds with equal weight.
        length (`int`, *optional*): Nominal length in tokens of the policy; by default the trainer's
            `max_completion_length`. A row whose `human_completion` is shorter has the length of that. Without any of
            these no completion is short.
        pointwise (`bool`, *optional*, defaults to `False`): Closeness alone, for training without groups. It is best
            for a policy that writes one average text. A short completion has less than 0.
        name (`str`, *optional*, defaults to `"uncertainty_reward"`): Name in logs.

    A completion of fewer than 4 tokens, or that is no valid text, counts as one of no length. One whose logits are not
    finite gets NaN.

    The log gets `{name}/closeness`, `{name}/short` (the share of short completions) and `{name}/energy_distance` of all
    completions from human texts: 0 where they are alike. `{name}/{feature}` is the mean distance of the completions
    from the human mean, in human standard deviations (negative: below people). Of several scorers, each has its own
    `{name}/{scorer}/...`. The table of completions gets the column `{name}_nll`, by the first scorer.

    Raises:
        InputError: If features, profiles or the length make no sense. When first called or bound, if a profile is of
            another scorer, lacks the kind, or was fitted without text features. Also if a chat prompt meets a scorer
            without a template, or there is no policy.

    Example:
        >>> reward = UncertaintyReward(scorers=["gemma-3-270m"])
        >>> reward.__name__, reward(["Two and two"], [" make four."], domain=["functional"])
        ('uncertainty_reward', [None])
    """

    def __init__(
        self,
        profiles: AnyProfile | Sequence[AnyProfile] = None,
        scorers: AnyScorer | Sequence[AnyScorer] = None,
        *,
        features: Sequence[str] = FEATURES,
        domain: str = CREATIVE,
        kind: Selection | None = None,
        length: int | None = None,
        pointwise: bool = False,
        name: str = "uncertainty_reward",
    ):
        unknown = [feature for feature in features if feature not in FEATURES]
        if unknown or not features:
            raise InputError(f"features {list(features)}: choose of {', '.join(FEATURES)}")
        if length is not None and length < 1:
            raise InputError(f"length is {length}, and at least 1 token is needed")
        readers: list[AnyScorer] = [*scorers] if isinstance(scorers, list | tuple) else [scorers]  # type: ignore[list-item]
        fitted: list[AnyProfile] = [*profiles] if isinstance(profiles, list | tuple) else [profiles]  # type: ignore[list-item]
        if profiles is None:
            fitted = [None] * len(readers)
        if len(readers) != len(fitted) or not readers:
            raise InputError(f"{len(readers)} scorers and {len(fitted)} human profiles: each scorer needs its own")
        self.features, self.domain, self.__name__ = tuple(features), domain, name
        self.length, self.pointwise, self._kind = length, pointwise, kind
        of_domain: Selection = domain if kind is None else kind
        self.judges = [Judge(scorer, profile, of_domain, name) for scorer, profile in zip(readers, fitted, strict=True)]

    def bind(self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take the scorer from a policy where none was given, and check that the profiles belong to the scorers.

        Trainers of this package call this before training. Under another trainer, the first call of the reward does.
        Binding to another policy takes the scorer and the profile anew.

        Raises:
            InputError: See the class.
        """
        for judge in self.judges:
            judge.bind(policy, tokenizer)

    def check(self, dataset: Dataset | IterableDataset) -> None:
        """Refuse rows whose kind a profile lacks. A stream is checked as it is read.

        Raises:
            InputError: See the class.
        """
        if self._kind is not None or isinstance(dataset, IterableDataset) or "kind" not in dataset.column_names:
            return
        domains = dataset["domain"] if "domain" in dataset.column_names else [self.domain] * len(dataset)
        for kind in {k for k, domain in zip(dataset["kind"], domains, strict=True) if domain == self.domain and k}:
            for judge in self.judges:
                try:
                    judge.human(kind)
                except InputError as error:
                    raise InputError(f"{error}: name one kind for all rows, or change their column 'kind'") from error

    @property
    def first(self) -> Judge:
        """The first scorer with its profile: it sets human levels."""
        return self.judges[0]

    def __call__(
        self, prompts: Sequence[Text], completions: Sequence[Text], completion_ids: Any = None, **columns: Any
    ) -> list[float | None]:
        """The reward of every completion; `None` for rows of another domain. See `details` for the arguments."""
        details = self.details(prompts, completions, completion_ids, **columns)
        return [None if one is None else one.reward for one in details]

    def details(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Any = None,
        *,
        domain: Sequence[str] | None = None,
        kind: Sequence[str | None] | None = None,
        human_completion: Sequence[Text | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        levels: bool = False,
        **columns: Any,
    ) -> list["RewardDetails | None"]:
        """Like a call, with the quantities behind each reward; with `levels`, also the human level.

        Under a trainer, every process has to call this: completions of all processes are compared.
        """
        rows = [i for i in range(len(prompts)) if domain is None or domain[i] == self.domain]
        # TRL hands over a bound method of its trainer, and nothing else that leads to the policy.
        caller = getattr(log_metric, "__self__", None)
        trainer = caller if hasattr(caller, "accelerator") else None
        together = trainer is not None and trainer.accelerator.num_processes > 1
        details: list[RewardDetails | None] = [None] * len(prompts)
        if rows or together:
            human = [None] * len(prompts) if human_completion is None else human_completion
            kinds = [None] * len(prompts) if kind is None or self._kind is not None else kind
            for judge in self.judges:
                judge.bind_to_caller(trainer)
            read = [prompts if trainer is None else judge.as_read(prompts, trainer) for judge in self.judges]
            # Special tokens are no text: a completion must not get its length by them.
            special = special_tokens(self._tokenizer(trainer))
            drawn = [()] * len(prompts) if completion_ids is None else completion_ids
            batch = Batch(
                keys=[repr(prompts[i]) for i in rows],
                prompts=[[one[i] for i in rows] for one in read],
                completions=[completions[i] for i in rows],
                kinds=[kinds[i] or self.first.kind for i in rows],
                human=[human[i] for i in rows],
                n_tokens=[sum(int(token) not in special for token in drawn[i]) for i in rows],
            )
            judged, matched = self._judge(batch, trainer, levels=levels, together=together)
            for i, one in zip(rows, judged, strict=True):
                details[i] = one
            if log_metric is not None and rows:
                self._log(judged, matched, log_metric)
        # Every process has to log the same columns, whatever its rows are.
        if log_extra is not None:
            log_extra(f"{self.__name__}_nll", [None if one is None else one.judged[0].nll for one in details])
        return details

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Text]) -> list["RewardDetails"]:
        """Judge completions that are all of this reward's domain, as one batch.

        Args:
            prompts (`Sequence[str or list]`): Their prompts: texts, chats, or token ids.
            completions (`Sequence[str or list]`): The completions.

        Raises:
            InputError: If the reward is not bound, or a chat prompt meets a scorer without a chat template.
        """
        n = len(prompts)
        batch = Batch(
            keys=list(map(repr, prompts)),
            prompts=[prompts] * len(self.judges),
            completions=completions,
            kinds=[self.first.kind] * n,
            human=[None] * n,
            n_tokens=[0] * n,
        )
        return self._judge(batch, None)[0]

    def _judge(
        self, batch: "Batch", trainer: Any, *, levels: bool = False, together: bool = False
    ) -> tuple[list["RewardDetails"], list[Matched]]:
        """Rewards of this process's completions, and how those of all processes match human texts by each scorer."""
        by_judge = [
            judge.judge(
                prompts,
                batch.completions,
                kinds=batch.kinds,
                human=batch.human if levels and judge is self.first else None,
            )
            for judge, prompts in zip(self.judges, batch.prompts, strict=True)
        ]
        judged = list(zip(*by_judge, strict=True))
        n = [length or one[0].n_tokens for length, one in zip(batch.n_tokens, judged, strict=True)]
        nominal = self._nominal(batch, n, trainer)
        shares = [
            math.nan if not all(of.finite for of in one) else n_i / most if all(of.n_tokens for of in one) else 0.0
            for one, n_i, most in zip(judged, n, nominal, strict=True)
        ]
        # A short text is no peer: it is off for its length alone.
        points = [
            # A scorer's own tokens of a text of the nominal length.
            [of.point(of.n_tokens / share if share else 1, self.features) for of in one]
            if share >= WHOLE
            else [np.full(len(FEATURES), np.nan)] * len(one)
            for one, share in zip(judged, shares, strict=True)
        ]
        rank = trainer.accelerator.process_index if together else 0
        rows = [(rank, *row) for row in zip(batch.keys, shares, points, strict=True)]
        if together:
            # TRL hands each process its own rows, and a group can be of two processes.
            rows = gather_object(rows)
        keys, all_shares = [row[1] for row in rows], np.array([row[2] for row in rows], dtype=np.float64)
        matched = [
            match(np.array([row[3][i] for row in rows]).reshape(-1, len(FEATURES)), keys)
            for i in range(len(self.judges))
        ]
        if self.pointwise:
            rewards = with_length_rule(_mean([one.closeness for one in matched]), None, all_shares)
        else:
            rewards = with_length_rule(_mean([one.rewards for one in matched]), keys, all_shares)
        own = [i for i, row in enumerate(rows) if row[0] == rank]
        details = [
            RewardDetails(float(rewards[i]), float(all_shares[i]), tuple(one))
            for i, one in zip(own, judged, strict=True)
        ]
        return details, matched

    def _nominal(self, batch: "Batch", n: Sequence[int], trainer: Any) -> list[int]:
        """Tokens that each completion should have."""
        given = self.length or (None if trainer is None else trainer.max_completion_length)
        tokenizer = self._tokenizer(trainer)
        texts = {text_of(text) for text in batch.human if text is not None}
        lengths = {text: len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
        known = [[given or math.inf, math.inf if text is None else lengths[text_of(text)]] for text in batch.human]
        return [max(1, n_i if min(one) == math.inf else int(min(one))) for one, n_i in zip(known, n, strict=True)]

    def _tokenizer(self, trainer: Any) -> PreTrainedTokenizerBase:
        """The tokenizer that counts lengths: the policy's, where it is known."""
        tokenizer: PreTrainedTokenizerBase = (
            self.first.scorer.tokenizer if trainer is None else trainer.processing_class
        )
        # A multimodal processor holds the tokenizer.
        return getattr(tokenizer, "tokenizer", tokenizer)

    def _log(
        self, details: Sequence["RewardDetails"], matched: Sequence[Matched], log_metric: Callable[[str, float], None]
    ) -> None:
        log_metric(f"{self.__name__}/short", float(np.mean([one.share < WHOLE for one in details])))
        for i, (judge, of_all) in enumerate(zip(self.judges, matched, strict=True)):
            label = self.__name__ if len(self.judges) == 1 else f"{self.__name__}/{judge.scorer.name}"
            # Completions that could not be scored have no features.
            rows = [z for one in details if (z := one.judged[i].standardised) is not None]
            of_texts = dict(zip(FEATURES, zip(*rows, strict=True), strict=True)) if rows else {}
            measures: dict[str, Sequence[float]] = {name: of_texts[name] for name in self.features if rows}
            measures |= {"closeness": of_all.closeness.tolist(), "energy_distance": [of_all.energy_distance]}
            for measure, values in measures.items():
                finite = [value for value in values if math.isfinite(value)]
                if finite:
                    log_metric(f"{label}/{measure}", float(sum(finite) / len(finite)))


@dataclass(frozen=True)
class Batch:
    """Completions of one domain that are judged together, `n` in this process.

    Args:
        keys (`list[str]`): What tells prompts apart.
        prompts (`list[Sequence[Prompt]]`): The prompts as each scorer reads them.
        completions (`Sequence[str or list]`): The completions.
        kinds (`list[str or Mapping]`): The human texts that each is compared with.
        human (`list[str or list or None]`): Human completions of the prompts.
        n_tokens (`list[int]`): Tokens that the policy drew; 0 where they are not known.
    """

    keys: list[str]
    prompts: list[Sequence[Prompt]]
    completions: Sequence[Text]
    kinds: list[Selection]
    human: list[Text | None]
    n_tokens: list[int]


@dataclass(frozen=True, eq=False)
class RewardDetails:
    """The reward of one completion, and what it was computed from.

    Args:
        reward (`float`): The reward; NaN where logits were not finite.
        share (`float`): Length over nominal length.
        judged (`tuple[Judged, ...]`): How each scorer reads the completion.
    """

    reward: float
    share: float
    judged: tuple[Judged, ...]


def _mean(rewards: Sequence[FloatArray]) -> FloatArray:
    return np.asarray(np.mean(rewards, axis=0))


uncertainty_reward = UncertaintyReward()
surprisal_reward = UncertaintyReward(features=["surprisal"], name="surprisal_reward")
entropy_reward = UncertaintyReward(features=["entropy"], name="entropy_reward")
pmi_reward = UncertaintyReward(features=["pmi"], name="pmi_reward")
factuality_reward = FactualityReward()
