"""The uncertainty reward for TRL's GRPO: how near a completion is to the human level.

TRL calls a reward with `prompts, completions, completion_ids` and every other column of the data set. The reward gives
a number in [0, 1] for each completion, or `None` for a row of another domain. Prompts and completions are strings, or
lists of chat messages. When a trainer calls, and the scorer shares the policy's vocabulary, the scorer reads the
policy's own token ids of a prompt. They come from the trainer's own method, with the chat template and its arguments.

[`UncertaintyReward`][] scores the completion after its prompt with a frozen scorer. It compares the completion's
features with those of human texts of that length (`ugap.profile.texts`). The comparison is two-sided and on all
features together, because text that no person writes can match each feature alone.

Ready instances (`uncertainty_reward`, `surprisal_reward`, `entropy_reward`, `pmi_reward`, `factuality_reward`) serve
`trl grpo --reward_funcs ugap.training.rewards.NAME` and Python. A reward without a scorer takes the frozen base of a
PEFT policy. For another policy, it takes a frozen copy of the model that the policy was loaded from.
"""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.domain import CREATIVE
from ugap.errors import InputError
from ugap.profile import HumanProfile, KindProfile
from ugap.profile.profile import Selection
from ugap.profile.texts import FEATURES, FEWEST_TOKENS
from ugap.scoring import Scorer, SharedScorer, TokenScores
from ugap.scoring.batching import Request
from ugap.training.factuality import FactualityReward, Text, text_of
from ugap.unicode import text_fault

# A text, a chat, or token ids.
Prompt = Text | Sequence[int]


class UncertaintyReward:
    """How near completions are to the human level of a domain, under a frozen scorer: in [0, 1], 1 at that level.

    The reward is `1 / (1 + d² / 4)`, with `d²` the squared Mahalanobis distance of the completion's features from their
    human mean, divided by the number of features. `d²` is about 1 for a human text, so people get about 0.8. The reward
    falls on both sides of the human level, and slowly, so that it still has a slope far away.

    Args:
        profile (`HumanProfile`, `str` or `Path`, *optional*): Human profile of the scorer, or its file; by default the
            model's own, see [`profile_for`][ugap.profile.profile_for].
        scorer (`Scorer` or `str`, *optional*): The frozen scorer, or a model's name to load when it is first needed; by
            default the policy's base.
        features (`Sequence[str]`, *optional*): Which features count, of `ugap.profile.texts.FEATURES`; by
            default all.
        domain (`str`, *optional*, defaults to `"creative"`): Rows of other domains get `None`. Without a column
            `domain`, all rows count.
        kind (`str` or `Mapping[str, float]`, *optional*): The human texts that completions are compared with: a kind,
            a domain or a mixture of kinds of the profile; by default `domain`, all of its kinds with equal weight.
        name (`str`, *optional*, defaults to `"uncertainty_reward"`): Name in logs.

    A completion of fewer than 4 tokens, or that is no valid text, gets 0. One whose logits are not finite gets NaN.

    The log gets `{name}/{feature}`: the mean distance of the completions from the human mean, in human standard
    deviations (negative: below people). The table of completions gets the column `{name}_nll`.

    Raises:
        InputError: When first called or bound, if the profile is of another scorer, lacks the kind, or was fitted
            without text features. Also if a chat prompt meets a scorer without a template, or there is no policy.

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
        kind: Selection | None = None,
        name: str = "uncertainty_reward",
    ):
        unknown = [feature for feature in features if feature not in FEATURES]
        if unknown or not features:
            raise InputError(f"features {list(features)}: choose of {', '.join(FEATURES)}")
        self.features, self.domain, self.__name__ = tuple(features), domain, name
        self.kind: Selection = domain if kind is None else kind
        self._given_profile, self._given_scorer = profile, scorer
        self._scorer: Scorer | None = scorer if isinstance(scorer, Scorer) else None
        self._profile: HumanProfile | None = None
        self._human: KindProfile | None = None
        # Held weakly: a ready instance outlives the policy of a run.
        self._policy: weakref.ref[torch.nn.Module] | None = None
        self._levels: dict[str, float] = {}
        self._compared: tuple[weakref.ref[PreTrainedTokenizerBase], bool] | None = None

    def bind(self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take the scorer from a policy where none was given, and check that the profile belongs to the scorer.

        Trainers of this package call this before training. Under another trainer, the first call of the reward does.
        Binding to another policy takes the scorer and the profile anew.

        Raises:
            InputError: See the class.
        """
        scorer = self._scorer_for(policy, tokenizer)
        profile = self._given_profile
        if profile is None:
            profile = HumanProfile.for_scorer(scorer)
        elif not isinstance(profile, HumanProfile):
            profile = HumanProfile.load(profile)
        # A profile of other weights would compare surprisals of two models.
        profile.check(scorer.id)
        human = profile.kind(self.kind)
        if human.texts is None:
            raise InputError(
                f"the human profile of {self.kind!r} was fitted without features of whole texts: fit it again"
            )
        # Levels and the comparison of vocabularies belong to one scorer.
        if scorer is not self._scorer:
            self._levels.clear()
            self._compared = None
        # Mixed once: a mixture of kinds takes milliseconds.
        self._scorer, self._profile, self._human = scorer, profile, human
        self._policy = None if policy is None else weakref.ref(policy)

    def _scorer_for(
        self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None
    ) -> Scorer:
        """The scorer that was given or already taken from this policy, else a new one."""
        if self._scorer is not None and (self._given_scorer is not None or self._bound_to(policy)):
            return self._scorer
        if isinstance(self._given_scorer, str):
            return Scorer.from_pretrained(self._given_scorer)
        # Without its adapters, the policy is the frozen base: no second model is loaded.
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
        """The scorer's human profile. Raises: see `scorer`."""
        assert self.scorer
        assert self._profile is not None
        return self._profile

    @property
    def human(self) -> KindProfile:
        """The human texts that completions are compared with. Raises: see `scorer`."""
        # Binds the reward, if it can be.
        assert self.profile is not None
        assert self._human is not None
        return self._human

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
        details = self.details(prompts, completions, domain=domain, log_metric=log_metric, log_extra=log_extra)
        return [None if one is None else one.reward for one in details]

    def details(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        domain: Sequence[str] | None = None,
        human_completion: Sequence[Text | None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list["RewardDetails | None"]:
        """Like a call, with the quantities behind each reward; with `human_completion`, also the human level."""
        rows = [i for i in range(len(prompts)) if domain is None or domain[i] == self.domain]
        details: list[RewardDetails | None] = [None] * len(prompts)
        if rows:
            # TRL hands over a bound method of its trainer, and nothing else that leads to the policy.
            trainer = getattr(log_metric, "__self__", None)
            self._bind_to_caller(trainer)
            as_read = prompts if trainer is None else self._as_read(prompts, trainer)
            human = None if human_completion is None else [human_completion[i] for i in rows]
            judged = self.judge([as_read[i] for i in rows], [completions[i] for i in rows], human)
            for i, one in zip(rows, judged, strict=True):
                details[i] = one
            if log_metric is not None:
                self._log(judged, log_metric)
        # Every process has to log the same columns, whatever its rows are.
        if log_extra is not None:
            log_extra(f"{self.__name__}_nll", [None if one is None else one.nll for one in details])
        return details

    def judge(
        self, prompts: Sequence[Prompt], completions: Sequence[Text], human: Sequence[Text | None] | None = None
    ) -> list["RewardDetails"]:
        """Judge completions that are all of this reward's domain, as one batch.

        Args:
            prompts (`Sequence[str or list]`): Their prompts: texts, chats, or token ids.
            completions (`Sequence[str or list]`): The completions.
            human (`Sequence[str or list or None]`, *optional*): Human completions of the prompts, to get human levels.

        Raises:
            InputError: If the reward is not bound, or a chat prompt meets a scorer without a chat template.
        """
        texts = [text_of(completion) for completion in completions]
        prefixes = [self._prefix(prompt) for prompt in prompts]
        # The scorer would warn of every empty completion, and of what is no text.
        fit = [i for i, text in enumerate(texts) if text_fault(text) is None and len(self._ids(text)) > 1]
        new = {} if human is None else self._without_level(prefixes, human)
        # One pass of the scorer for all of them. Human completions come last.
        both = [(prefixes[i], texts[i]) for i in fit] + list(new.values())
        scores = self.scorer.score([text for _, text in both], [prefix for prefix, _ in both], pmi=True, skip_bad=True)
        if new:
            self._keep_levels(new, scores[len(fit) :])
        levels = [None] * len(prefixes) if human is None else self.human_levels(prefixes, human)
        profile = self.human
        assert profile.texts is not None
        details = [RewardDetails(0.0, *known) for known in zip(prefixes, levels, strict=True)]
        for i, score in zip(fit, scores[: len(fit)], strict=True):
            if score is None:
                # The text is fit to be scored, so its logits are not finite.
                details[i] = RewardDetails(math.nan, prefixes[i], levels[i])
            elif (n := len(score)) >= FEWEST_TOKENS:
                features = profile.text_features(score)
                details[i] = RewardDetails(
                    reward=profile.texts.closeness(features, n, self.features),
                    prompt=prefixes[i],
                    human_level=levels[i],
                    token_ids=score.token_ids.tolist(),
                    nll=score.nll,
                    features=features,
                    standardised=profile.texts.standardised(features, n),
                )
        return details

    def human_levels(self, prompts: Sequence[Prompt], human: Sequence[Text | None]) -> list[float]:
        """Expected surprisal of people after prompts, in nats per token of the scorer.

        With a human completion: the mean over its tokens of the calibration curve at the scorer's entropy. Without: the
        human level of the kind. Each human completion is scored once.

        Args:
            prompts (`Sequence[str or list]`): Prompts of this reward's domain, or their token ids.
            human (`Sequence[str or list or None]`): The human completions.
        """
        prefixes = [self._prefix(prompt) for prompt in prompts]
        if new := self._without_level(prefixes, human):
            texts = [text for _, text in new.values()]
            self._keep_levels(new, self.scorer.score(texts, [prefix for prefix, _ in new.values()], skip_bad=True))
        of_kind = self.human.means["surprisal"]
        return [self._levels.get(repr(pair), of_kind) for pair in zip(prefixes, human, strict=True)]

    def _without_level(
        self, prefixes: Sequence[str | list[int]], human: Sequence[Text | None]
    ) -> dict[str, tuple[str | list[int], str]]:
        """Prefix and text of the human completions that were not scored yet, by their key in `_levels`."""
        return {
            repr((prefix, text)): (prefix, text_of(text))
            for prefix, text in zip(prefixes, human, strict=True)
            if text is not None and repr((prefix, text)) not in self._levels
        }

    def _keep_levels(self, keys: Iterable[str], scores: Sequence[TokenScores | None]) -> None:
        curve = self.human.curve
        for key, score in zip(keys, scores, strict=True):
            if score is not None:
                self._levels[key] = float(np.nanmean(curve(score.entropy)))

    def shares_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the scorer has the vocabulary of a policy's tokenizer. Raises: see `scorer`."""
        if self.scorer.tokenizer is tokenizer:
            return True
        if self._compared is None or self._compared[0]() is not tokenizer:
            same = self.scorer.tokenizer.get_vocab() == tokenizer.get_vocab()
            self._compared = weakref.ref(tokenizer), same
        return self._compared[1]

    def token_nlls(
        self,
        prompts: Sequence[list[int]],
        completions: Sequence[list[int]],
        details: Sequence["RewardDetails | None"],
    ) -> list[float]:
        """Mean surprisal of the drawn token ids to the scorer, in nats per token.

        The tokenizer can cut a completion's text into other ids than the policy drew. Only then are the ids scored
        here; else the mean is known from judging the text.

        Args:
            prompts (`Sequence[list[int]]`): Token ids before each completion, BOS included.
            completions (`Sequence[list[int]]`): Token ids of the completions; empty lists give NaN.
            details (`Sequence[RewardDetails or None]`): How the completions were judged.

        Returns:
            `list[float]`: NaN for a completion without tokens, or with a token that the scorer does not know.
        """
        nlls, requests = [math.nan] * len(completions), []
        for i, (prompt, ids, one) in enumerate(zip(prompts, completions, details, strict=True)):
            if one is not None and one.nll is not None and (one.prompt, one.token_ids) == (prompt, ids):
                nlls[i] = one.nll
            # Some tokenizers have added tokens that the scorer has no embedding for.
            elif prompt and ids and max(prompt + ids) < len(self.scorer.head.weight):
                requests.append(Request(i, 0, prompt, ids))
        if requests:
            for i, statistics in self.scorer._run_all(requests, False).items():
                nlls[i] = float(statistics[0].mean())
        return nlls

    def _as_read(self, prompts: Sequence[Text], trainer: Any) -> Sequence[Prompt]:
        """All prompts of a batch as the policy reads them: the token ids of the trainer's own method.

        A scorer with another vocabulary reads texts, and chats through its own template with the trainer's arguments
        (`chat_template_kwargs`).
        """
        if self.shares_tokens(trainer.processing_class):
            ids: list[list[int]] = trainer._tokenize_prompts(list(prompts))[0]
            return ids
        return [self._prefix(prompt, trainer.chat_template_kwargs) for prompt in prompts]

    def _ids(self, text: str) -> list[int]:
        return self.scorer.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _prefix(self, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> str | list[int]:
        """A prompt for the scorer: a text or token ids as they are, a chat as token ids of its template."""
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
        # The template writes BOS itself, where the model wants one.
        return tokenizer(rendered, add_special_tokens=False)["input_ids"]

    def _bind_to_caller(self, trainer: Any) -> None:
        """Bind to the policy of the trainer that calls, unless the reward has a scorer."""
        if self._profile is not None and (trainer is None or self._given_scorer is not None):
            return
        if trainer is not None:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            if not self._bound_to(policy):
                self.bind(policy, trainer.processing_class)
        elif self._given_scorer is None:
            raise InputError(f"{self.__name__} has no scorer, and is not called by a trainer whose policy could be it")

    def _log(self, judged: Sequence["RewardDetails"], log_metric: Callable[[str, float], None]) -> None:
        # Completions that could not be scored have no features.
        rows = [one.standardised for one in judged if one.standardised is not None]
        for feature, values in zip(FEATURES, zip(*rows, strict=True), strict=bool(rows)):
            finite = [value for value in values if math.isfinite(value)]
            if feature in self.features and finite:
                log_metric(f"{self.__name__}/{feature}", float(sum(finite) / len(finite)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out models that can be loaded or taken again: a named scorer, and the policy's base."""
        state = self.__dict__.copy()
        if not isinstance(self._given_scorer, Scorer):
            state["_scorer"] = state["_profile"] = state["_human"] = None
        # Weak references cannot be pickled.
        state["_policy"] = state["_compared"] = None
        return state


@dataclass(frozen=True, eq=False)
class RewardDetails:
    """The reward of one completion, and what it was computed from; `None` where the completion could not be scored.

    Args:
        reward (`float`): In [0, 1]; NaN where the logits were not finite.
        prompt (`str` or `list[int]`): The prompt as the scorer read it.
        human_level (`float`, *optional*): Expected surprisal of people after the prompt, nats per token; `None` if
            `judge` got no human completions.
        token_ids (`list[int]`, *optional*): The scorer's `T` token ids of the completion's text.
        nll (`float`, *optional*): Mean surprisal of these tokens, nats per token.
        features (`np.ndarray` of shape `(8,)`, *optional*): `ugap.profile.texts.FEATURES` of the text.
        standardised (`np.ndarray` of shape `(8,)`, *optional*): The features less their human mean, in human standard
            deviations.
    """

    reward: float
    prompt: str | list[int]
    human_level: float | None = None
    token_ids: list[int] | None = None
    nll: float | None = None
    features: np.ndarray | None = None
    standardised: np.ndarray | None = None


uncertainty_reward = UncertaintyReward()
surprisal_reward = UncertaintyReward(features=["surprisal"], name="surprisal_reward")
entropy_reward = UncertaintyReward(features=["entropy"], name="entropy_reward")
pmi_reward = UncertaintyReward(features=["pmi"], name="pmi_reward")
factuality_reward = FactualityReward()
