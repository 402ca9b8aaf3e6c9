"""Rewards for TRL's GRPO: how near a completion is to the human level, and whether an answer is right.

They are called as TRL calls reward functions, with `prompts, completions, completion_ids` and every other column of the
data set, and give a number in [0, 1] for each completion, or `None` for a row of another domain. Prompts and
completions are strings, or lists of chat messages. Called by a trainer, the scorer reads the token ids of a prompt that
the policy reads, if it knows them: those of the trainer's own function, with its chat template and what it hands to it.

- [`UncertaintyReward`][] scores the completion after its prompt with a frozen scorer and compares its features with
  those that human texts of this length have (`ugap.profile.texts`): two-sided, and on all features together, because
  each alone can be matched by text that no person writes.
- [`FactualityReward`][] looks for the answer.

The ready instances (`uncertainty_reward`, `surprisal_reward`, `entropy_reward`, `pmi_reward`, `factuality_reward`) are
for `trl grpo --reward_funcs ugap.training.rewards.NAME` and for Python. A reward without a scorer takes the policy's
frozen base where the policy is a PEFT model, else a frozen copy of the model that the policy was loaded from.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.texts import FEATURES, FEWEST_TOKENS
from ugap.scoring import Scorer
from ugap.scoring.batching import Request
from ugap.study.probes.facts import answer_words, first_named, starts_with
from ugap.training.domains import CREATIVE, FUNCTIONAL
from ugap.training.shared_scorer import SharedScorer
from ugap.unicode import text_fault

Message = Mapping[str, Any]
Text = str | Sequence[Message]
# A text, a chat, or token ids that are taken as they are.
Prompt = Text | Sequence[int]


class UncertaintyReward:
    """How near completions are to the human level of a domain, under a frozen scorer: in [0, 1], 1 at that level.

    The reward is `1 / (1 + d² / 4)`, with `d²` the squared Mahalanobis distance of the completion's features from their
    human mean, over the number of features: about 1 for a human text, so that people have about 0.8. It
    falls on both sides of the human level, and slowly, so that far away there is still a slope.

    Args:
        profile (`HumanProfile`, `str` or `Path`, *optional*): Human profile of the scorer, or its file; by default the
            shipped one.
        scorer (`Scorer` or `str`, *optional*): The frozen scorer, or a model's name to load when it is first needed; by
            default the policy's base.
        features (`Sequence[str]`, *optional*): Which features count, of `ugap.profile.texts.FEATURES`; by
            default all.
        domain (`str`, *optional*, defaults to `"creative"`): Rows of other domains get `None`, and the completion is
            compared with human texts of this one. Without a column `domain` all rows are of it.
        name (`str`, *optional*, defaults to `"uncertainty_reward"`): Name in logs.

    A completion of fewer than 4 tokens, or that is no valid text, gets 0. One whose logits are not finite gets NaN.

    Logged are `{name}/{feature}`, the mean distance of the completions from the human mean in human standard deviations
    (signed: below 0 is below people), and by completion the column `{name}_nll`.

    Raises:
        InputError: When first called or bound, if the profile is of another scorer, lacks the domain, or was fitted
            without text features, a chat prompt meets a scorer without a template, or there is no policy to share.

    Example:
        >>> reward = UncertaintyReward(scorer="gemma-3-270m")
        >>> reward.__name__, reward(["Two and two"], [" make four."], domain=["functional"])
        ('uncertainty_reward', [None])
    """

    def __init__(
        self,
        profile: HumanProfile | str | Path | None = None,
        scorer: Scorer | str | None = None,
        *,
        features: Sequence[str] = FEATURES,
        domain: str = CREATIVE,
        name: str = "uncertainty_reward",
    ):
        unknown = [feature for feature in features if feature not in FEATURES]
        if unknown or not features:
            raise InputError(f"features {list(features)}: choose of {', '.join(FEATURES)}")
        self.features, self.domain, self.__name__ = tuple(features), domain, name
        self._given_profile, self._given_scorer = profile, scorer
        self._scorer: Scorer | None = scorer if isinstance(scorer, Scorer) else None
        self._profile: HumanProfile | None = None
        # Held weakly: a ready instance outlives the policy of a run.
        self._policy: weakref.ref[torch.nn.Module] | None = None
        self._levels: dict[str, float] = {}
        self._compared: tuple[weakref.ref[PreTrainedTokenizerBase], bool] | None = None

    def bind(self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take the scorer that the reward has none of from a policy, and check that the profile is of it.

        Trainers of this package call it before training; another trainer's call of the reward does it. Binding to
        another policy takes the scorer and the profile anew.

        Raises:
            InputError: As of the class.
        """
        scorer = self._scorer_for(policy, tokenizer)
        profile = self._given_profile
        if profile is None:
            profile = HumanProfile.shipped_for(scorer.id)
        elif not isinstance(profile, HumanProfile):
            profile = HumanProfile.load(profile)
        profile.check(scorer.id)
        if profile.domain(self.domain).texts is None:
            raise InputError(
                f"the human profile of {self.domain!r} was fitted without features of whole texts: fit it again"
            )
        if scorer is not self._scorer:
            self._levels.clear()
            self._compared = None
        self._scorer, self._profile = scorer, profile
        self._policy = None if policy is None else weakref.ref(policy)

    def _scorer_for(
        self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None
    ) -> Scorer:
        """The scorer that is given or was taken from this policy already, else a new one."""
        if self._scorer is not None and (self._given_scorer is not None or self._bound_to(policy)):
            return self._scorer
        if isinstance(self._given_scorer, str):
            return Scorer.from_pretrained(self._given_scorer)
        if isinstance(policy, PeftModel):
            return SharedScorer(policy, tokenizer)
        if policy is None:
            raise InputError(f"{self.__name__} has neither a scorer nor a policy to take it from")
        return Scorer.from_pretrained(policy.config.name_or_path)

    def _bound_to(self, policy: torch.nn.Module | None) -> bool:
        return policy is not None and self._policy is not None and self._policy() is policy

    @property
    def scorer(self) -> Scorer:
        """The frozen scorer.

        Raises:
            InputError: If the reward is not bound yet.
        """
        if self._profile is None and self._given_scorer is not None:
            self.bind(None, None)
        if self._scorer is None or self._profile is None:
            raise InputError(f"{self.__name__} has no scorer yet: give it one, or bind it to a policy")
        return self._scorer

    @property
    def profile(self) -> HumanProfile:
        """The human profile of the scorer; raises as `scorer`."""
        assert self.scorer
        assert self._profile is not None
        return self._profile

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Any = None,
        *,
        domain: Sequence[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of every completion; `None` for rows of another domain."""
        own = [i for i in range(len(prompts)) if domain is None or domain[i] == self.domain]
        rewards: list[float | None] = [None] * len(prompts)
        nll: list[float | None] = [None] * len(prompts)
        if own:
            trainer = getattr(log_metric, "__self__", None)
            self._bind_to_caller(trainer)
            read = prompts if trainer is None else self.as_read(prompts, trainer)
            judged = self.judge([read[i] for i in own], [completions[i] for i in own])
            for i, one in zip(own, judged, strict=True):
                rewards[i], nll[i] = one.reward, one.nll
            if log_metric is not None:
                self._log(judged, log_metric)
        # Every process logs the same columns, whatever its rows are.
        if log_extra is not None:
            log_extra(f"{self.__name__}_nll", nll)
        return rewards

    def as_read(self, prompts: Sequence[Text], trainer: Any) -> Sequence[Prompt]:
        """The prompts as the policy of a trainer reads them: token ids of the function that makes those of the policy.

        A scorer of other tokens reads the texts, or the chats through its own template with what the trainer hands to
        the policy's (`chat_template_kwargs`).

        Args:
            prompts (`Sequence[str or list]`): All prompts of a batch.
            trainer (`GRPOTrainer`): TRL's trainer or one made from it.
        """
        if self.shares_tokens(trainer.processing_class):
            ids: list[list[int]] = trainer._tokenize_prompts(list(prompts))[0]
            return ids
        return [self._prefix(prompt, trainer.chat_template_kwargs) for prompt in prompts]

    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Text]) -> list["RewardDetails"]:
        """Rewards of completions, all of this reward's domain, and what they are made of.

        Raises:
            InputError: If the reward is not bound, or a chat prompt meets a scorer without a chat template.
        """
        texts = [_text(completion) for completion in completions]
        fit = [i for i, text in enumerate(texts) if text_fault(text) is None and len(self._ids(text)) > 1]
        scored = self.scorer.score(
            [texts[i] for i in fit], [self._prefix(prompts[i]) for i in fit], pmi=True, skip_bad=True
        )
        scores = dict(zip(fit, scored, strict=True))
        profile = self.profile.domain(self.domain)
        assert profile.texts is not None
        out = []
        for i in range(len(texts)):
            score = scores.get(i)
            if score is None or len(score) < FEWEST_TOKENS:
                # Fit to be scored, and yet it was not: its logits are not finite.
                bad = score is None and i in scores
                out.append(RewardDetails(math.nan if bad else 0.0, None, None))
                continue
            values = profile.text_features(score)
            reward = profile.texts.closeness(values, len(score), self.features)
            out.append(RewardDetails(reward, score.nll, profile.texts.standardised(values, len(score))))
        return out

    def human_levels(self, prompts: Sequence[Prompt], human: Sequence[Text | None]) -> list[float]:
        """How surprising people are expected to be after prompts, in nats per token of the scorer.

        Where a human continuation is given: the mean over its tokens of the calibration curve at the scorer's entropy.
        Else the human level of the domain. Each prompt is scored once.

        Args:
            prompts (`Sequence[str or list]`): Prompts of this reward's domain, or their token ids.
            human (`Sequence[str or list or None]`): How a person went on.
        """
        keys = [repr((prompt, text)) for prompt, text in zip(prompts, human, strict=True)]
        new = {
            key: (prompt, text)
            for key, prompt, text in zip(keys, prompts, human, strict=True)
            if key not in self._levels and text is not None
        }
        if new:
            scores = self.scorer.score(
                [_text(text) for _, text in new.values()],
                [self._prefix(prompt) for prompt, _ in new.values()],
                skip_bad=True,
            )
            curve = self.profile.curve(self.domain)
            for key, score in zip(new, scores, strict=True):
                if score is not None:
                    self._levels[key] = float(np.nanmean(curve(score.entropy)))
        level = self.profile.domain(self.domain).means["surprisal"]
        return [self._levels.get(key, level) for key in keys]

    def shares_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the scorer reads a policy's token ids as they are; raises as `scorer`."""
        own = self.scorer.tokenizer
        if own is tokenizer:
            return True
        if self._compared is None or self._compared[0]() is not tokenizer:
            self._compared = weakref.ref(tokenizer), own.get_vocab() == tokenizer.get_vocab()
        return self._compared[1]

    def token_nlls(self, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> list[float]:
        """Mean surprisal of completions to the scorer, in nats per token, on just these token ids.

        Text that is tokenised again can be other tokens, and other ones than those that the policy drew.

        Args:
            prompts (`Sequence[list[int]]`): Token ids before each completion, BOS included.
            completions (`Sequence[list[int]]`): Token ids of the completions.

        Returns:
            `list[float]`: NaN for a completion without tokens, or with one that the scorer does not know.
        """
        known = len(self.scorer.head.weight)
        requests = [
            Request(i, 0, prompt, completion)
            for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
            if prompt and completion and max(prompt + completion) < known
        ]
        surprisals = {i: rows[0] for i, rows in self.scorer._run_all(requests, False).items()}
        return [float(surprisals[i].mean()) if i in surprisals else math.nan for i in range(len(completions))]

    def _ids(self, text: str) -> list[int]:
        return self.scorer.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _prefix(self, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> str | list[int]:
        """What the scorer reads before a completion: a text, a chat through its template, or token ids as they are."""
        if isinstance(prompt, str):
            return prompt
        if not prompt or isinstance(prompt[0], int):
            return list(prompt)  # type: ignore[arg-type]
        tokenizer = self.scorer.tokenizer
        if tokenizer.chat_template is None:
            raise InputError(f"{self.scorer.name} has no chat template, and the prompts are chats")
        rendered = tokenizer.apply_chat_template(
            list(prompt), tokenize=False, add_generation_prompt=True, **(chat_template_kwargs or {})
        )
        return tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _bind_to_caller(self, trainer: Any) -> None:
        """Bind to the policy of the trainer that calls; it has shown itself by the method that it hands over."""
        if self._profile is not None and (trainer is None or self._given_scorer is not None):
            return
        if trainer is not None:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            if not self._bound_to(policy):
                self.bind(policy, trainer.processing_class)
        elif self._given_scorer is None:
            raise InputError(f"{self.__name__} has no scorer, and is not called by a trainer whose policy could be it")

    def _log(self, judged: Sequence["RewardDetails"], log_metric: Callable[[str, float], None]) -> None:
        rows = [one.standardised for one in judged if one.standardised is not None]
        for feature, values in zip(FEATURES, zip(*rows, strict=True), strict=bool(rows)):
            told = [value for value in values if math.isfinite(value)]
            if feature in self.features and told:
                log_metric(f"{self.__name__}/{feature}", float(sum(told) / len(told)))

    def __getstate__(self) -> dict[str, Any]:
        """Without the models that can be had again: that of a name, and the policy's base."""
        state = self.__dict__.copy()
        if not isinstance(self._given_scorer, Scorer):
            state["_scorer"] = state["_profile"] = None
        # What a weak reference points at is of this process.
        state["_policy"] = state["_compared"] = None
        return state


@dataclass(frozen=True, eq=False)
class RewardDetails:
    """What a reward made of one completion.

    Args:
        reward (`float`): In [0, 1]; NaN where the logits were not finite.
        nll (`float`, *optional*): Mean surprisal in nats per token; `None` where nothing could be scored.
        standardised (`np.ndarray` of shape `(F,)`, *optional*): Each of `ugap.profile.texts.FEATURES` less its human
            mean, in human standard deviations.
    """

    reward: float
    nll: float | None
    standardised: np.ndarray | None


class FactualityReward:
    """Whether completions give the right answer: 1 or 0, and `None` for rows of another domain or without an answer.

    Args:
        kind (`str`, *optional*, defaults to `"exact"`): `"exact"`: the completion starts with an answer.
            `"contrastive"`: of the answers and the wrong ones of the column `wrong`, a right one is named first,
            wherever that is; for answers in sentences.
        domain (`str`, *optional*, defaults to `"functional"`): Rows of other domains get `None`. Without a column
            `domain` all rows are of it.
        name (`str`, *optional*, defaults to `"factuality_reward"`): Name in logs.

    Columns: `answer` (one answer, or a list of all that counts as right) and, for `"contrastive"`, `wrong` (a list).
    Answers are compared word by word without regard to case, accents and articles, see
    `ugap.study.probes.facts.answer_words`. A number is taken as its text: 12 and 12.0 as "12", True as "True".

    Raises:
        InputError: If the kind is unknown; when called, if a column is missing; by `check`, or else when called, if an
            answer is no text or number, or has no word to be found by.

    Example:
        >>> reward = FactualityReward()
        >>> reward(["Two plus two is"] * 2, [" four.", " five."], answer=["four", ["four", "4"]])
        [1.0, 0.0]
    """

    def __init__(
        self,
        kind: Literal["exact", "contrastive"] = "exact",
        *,
        domain: str = FUNCTIONAL,
        name: str = "factuality_reward",
    ):
        if kind not in ("exact", "contrastive"):
            raise InputError(f"kind {kind!r}: not exact or contrastive")
        self.kind, self.domain, self.__name__ = kind, domain, name

    def check(self, rows: Iterable[Mapping[str, Any]], name: str = "the training set") -> None:
        """Refuse answers that no completion can be compared with; trainers of this package call it before training.

        Args:
            rows (`Iterable[Mapping]`): The rows; those of other domains are passed over.
            name (`str`, *optional*, defaults to `"the training set"`): How an error names them.

        Raises:
            InputError: If an answer is no text or number, or has no word.
        """
        for number, row in enumerate(rows):
            if row.get("domain", self.domain) == self.domain:
                for column in ("answer", "wrong") if self.kind == "contrastive" else ("answer",):
                    _listed(row.get(column), f"{name}'s row {number}, {column}")

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Any = None,
        *,
        domain: Sequence[str] | None = None,
        answer: Sequence[Any] | None = None,
        wrong: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of every completion."""
        if answer is None:
            raise InputError(f"{self.__name__}: the data have no column 'answer'")
        if wrong is None:
            if self.kind == "contrastive":
                raise InputError(f"{self.__name__}: the data have no column 'wrong', which contrastive answers need")
            wrong = [None] * len(completions)
        rewards: list[float | None] = []
        for i, completion in enumerate(completions):
            row = f"{self.__name__}, row {i} of the batch"
            own = domain is None or domain[i] == self.domain
            right = _listed(answer[i], f"{row}, answer") if own else []
            if not right:
                rewards.append(None)
            elif self.kind == "exact":
                rewards.append(float(starts_with(_text(completion), right)))
            else:
                named = first_named(_text(completion), [*right, *_listed(wrong[i], f"{row}, wrong")])
                rewards.append(float(named is not None and named < len(right)))
        return rewards


def _text(text: Text) -> str:
    """A text, or what the last message of a chat says."""
    if isinstance(text, str):
        return text
    return str(text[-1]["content"]) if text else ""


def _listed(answers: Any, place: str) -> list[str]:
    """The answers of a row, none where it has none."""
    if answers is None:
        return []
    several = isinstance(answers, Sequence | np.ndarray) and not isinstance(answers, str)
    return [_answer(answer, place) for answer in (answers if several else [answers])]


def _answer(answer: Any, place: str) -> str:
    if isinstance(answer, float | np.floating) and math.isfinite(answer):
        # Tables hold whole numbers as floats where a row has none.
        said = np.format_float_positional(answer, trim="-")
    elif isinstance(answer, str | int | np.integer | np.bool_ | Decimal):
        said = str(answer)
    else:
        raise InputError(f"{place}: {answer!r} is no text and no number")
    if not answer_words(said):
        raise InputError(f"{place}: {answer!r} has no word, so no completion can match it")
    return said


uncertainty_reward = UncertaintyReward()
surprisal_reward = UncertaintyReward(features=["surprisal"], name="surprisal_reward")
entropy_reward = UncertaintyReward(features=["entropy"], name="entropy_reward")
pmi_reward = UncertaintyReward(features=["pmi"], name="pmi_reward")
factuality_reward = FactualityReward()
