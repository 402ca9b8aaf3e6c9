"""One frozen scorer behind a reward: how it reads prompts and completions, and with which people it compares them."""

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.profile import HumanProfile, KindProfile
from ugap.profile.plain import FloatArray
from ugap.profile.positions import TextTokens
from ugap.profile.profile import AUTO, Selection
from ugap.profile.texts import FEATURES, FEWEST_TOKENS
from ugap.sampling.portable.special import special_tokens
from ugap.scoring import Scorer, SharedScorer, TokenScores
from ugap.scoring.batching import Request
from ugap.training.factuality import Text, text_of
from ugap.unicode import text_fault

# A text, a chat, or token ids.
Prompt = Text | Sequence[int]
_MOST_KINDS = 256  # selections and prompts that are remembered


@dataclass(frozen=True, eq=False)
class Judged:
    """One completion as a scorer reads it.

    Args:
        prompt (`str` or `list[int]`): The prompt as the scorer read it.
        n_tokens (`int`): The scorer's tokens of the completion; 0 where it is no text that can be scored.
        kind (`KindProfile`): The human texts that it is compared with.
        human_level (`float`, *optional*): Expected surprisal of people after the prompt, nats per token. With a human
            completion, it is the mean over its tokens of the calibration curve at the scorer's entropy; without one,
            the mean of the kind. `None` if no levels were asked for.
        token_ids (`list[int]`, *optional*): The scorer's token ids of the completion's text.
        nll (`float`, *optional*): Mean surprisal of these tokens, nats per token.
        features (`np.ndarray` of shape `(8,)`, *optional*): `ugap.profile.texts.FEATURES` of the text.
        finite (`bool`, *optional*, defaults to `True`): Whether the scorer's logits were finite.
    """

    prompt: str | list[int]
    n_tokens: int
    kind: KindProfile
    human_level: float | None = None
    token_ids: list[int] | None = None
    nll: float | None = None
    features: FloatArray | None = None
    finite: bool = True

    def point(self, n: int, which: Sequence[str]) -> FloatArray:
        """The completion among human texts of `n` tokens, or of its own length where it is longer: shape `(8,)`.

        A text below the nominal length scatters more, and must not be excused for it. NaN where it was not scored.
        """
        if self.features is None or self.kind.texts is None:
            return np.full(len(FEATURES), np.nan)
        return self.kind.texts.whitened(self.features, max(n, self.n_tokens), which)

    @property
    def standardised(self) -> FloatArray | None:
        """The features less their human mean, in human standard deviations: shape `(8,)`."""
        if self.features is None or self.kind.texts is None:
            return None
        return self.kind.texts.standardised(self.features, self.n_tokens)


class Judge:
    """A frozen scorer with its human profile.

    Args:
        scorer (`Scorer` or `str`, *optional*): The scorer, or a model's name to load when it is first needed; by
            default the policy's base.
        profile (`HumanProfile`, `str` or `Path`, *optional*): Its human profile, or the file; by default the model's
            own, see [`profile_for`][ugap.profile.profile_for].
        kind (`str` or `Mapping[str, float]`): The human texts where a row does not name its own.
        name (`str`): Name of the reward, for errors.
    """

    def __init__(
        self, scorer: Scorer | str | None, profile: HumanProfile | str | Path | None, kind: Selection, name: str
    ):
        self._given_scorer, self._given_profile, self.kind, self._name = scorer, profile, kind, name
        self._scorer: Scorer | None = scorer if isinstance(scorer, Scorer) else None
        self._profile: HumanProfile | None = None
        # Held weakly: a ready instance outlives the policy of a run.
        self._policy: weakref.ref[torch.nn.Module] | None = None
        self._levels: dict[str, float] = {}
        self._kinds: dict[str, KindProfile] = {}
        self._compared: tuple[weakref.ref[PreTrainedTokenizerBase], bool] | None = None

    def bind(self, policy: PreTrainedModel | PeftModel | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Take the scorer from a policy where none was given, and check that the profile belongs to the scorer.

        Raises:
            InputError: If the profile is of another scorer, lacks the kind, or was fitted without text features, or
                there is no policy.
        """
        scorer = self._scorer_for(policy, tokenizer)
        profile = self._given_profile
        if profile is None:
            profile = HumanProfile.for_scorer(scorer)
        elif not isinstance(profile, HumanProfile):
            profile = HumanProfile.load(profile)
        # A profile of other weights would compare surprisals of two models.
        profile.check(scorer.id)
        # Levels, mixtures of kinds and the comparison of vocabularies belong to one scorer.
        if scorer is not self._scorer or profile is not self._profile:
            self._levels.clear()
            self._kinds.clear()
            self._compared = None
        self._scorer, self._profile = scorer, profile
        self.human(self.kind)
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
            raise InputError(f"{self._name} has neither a scorer nor a policy to take it from")
        return Scorer.from_pretrained(policy.config.name_or_path)

    def _bound_to(self, policy: torch.nn.Module | None) -> bool:
        return policy is not None and self._policy is not None and self._policy() is policy

    def bind_to_caller(self, trainer: Any) -> None:
        """Bind to the policy of the trainer that calls, unless the scorer was given.

        Raises:
            InputError: As `bind`, and if neither a scorer nor a trainer is there.
        """
        if self._profile is not None and (trainer is None or self._given_scorer is not None):
            return
        if trainer is not None:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            if not self._bound_to(policy):
                self.bind(policy, trainer.processing_class)
        elif self._given_scorer is None:
            raise InputError(f"{self._name} has no scorer, and is not called by a trainer whose policy could be it")

    @property
    def scorer(self) -> Scorer:
        """The frozen scorer.

        Raises:
            InputError: If it is not bound yet.
        """
        if self._profile is None and self._given_scorer is not None:
            self.bind(None, None)
        if self._scorer is None or self._profile is None:
            raise InputError(f"{self._name} has no scorer yet: give it one, or bind it to a policy")
        return self._scorer

    @property
    def profile(self) -> HumanProfile:
        """The scorer's human profile. Raises: see `scorer`."""
        assert self.scorer
        assert self._profile is not None
        return self._profile

    def human(self, kind: Selection | None = None) -> KindProfile:
        """The human texts of a selection; by default of the reward's.

        Raises:
            InputError: As [`HumanProfile.kind`][ugap.HumanProfile.kind], and if it has no features of whole texts.
        """
        kind = self.kind if kind is None else kind
        return self._remembered(repr(kind), lambda: self.profile.kind(kind), kind)

    def _remembered(self, key: str, make: Callable[[], KindProfile], kind: Selection) -> KindProfile:
        # A mixture of kinds takes milliseconds.
        if key not in self._kinds:
            if len(self._kinds) >= _MOST_KINDS:  # a training asks for other prompts in every step
                self._kinds.clear()
            made = make()
            if made.texts is None:
                raise InputError(
                    f"the human profile of {kind!r} was fitted without features of whole texts: fit it again"
                )
            self._kinds[key] = made
        return self._kinds[key]

    def judge(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Text],
        *,
        kinds: Sequence[Selection] | None = None,
        human: Sequence[Text | None] | None = None,
    ) -> list[Judged]:
        """Score completions after their prompts, as one batch.

        Args:
            prompts (`Sequence[str or list]`): Their prompts: texts, chats, or token ids.
            completions (`Sequence[str or list]`): The completions.
            kinds (`Sequence[str or Mapping]`, *optional*): The human texts that each is compared with.
            human (`Sequence[str or list or None]`, *optional*): Human completions of the prompts, to get human levels.

        Raises:
            InputError: If the judge is not bound, or a chat prompt meets a scorer without a chat template.
        """
        texts = [text_of(completion) for completion in completions]
        prefixes = [self.prefix(prompt) for prompt in prompts]
        people = self._people(prefixes, kinds or [self.kind] * len(prefixes))
        # The scorer would warn of every empty completion, and of what is no text.
        fit = [i for i, text in enumerate(texts) if text_fault(text) is None and len(self._ids(text)) > 1]
        new = {} if human is None else self._without_level(prefixes, human, people)
        # One pass of the scorer for all of them. Human completions come last.
        both = [(prefixes[i], texts[i]) for i in fit] + [(prefix, text) for prefix, text, _ in new.values()]
        scores = self.scorer.score([text for _, text in both], [prefix for prefix, _ in both], pmi=True, skip_bad=True)
        if new:
            self._keep_levels(new, scores[len(fit) :])
        levels: Sequence[float | None] = [None] * len(prefixes)
        if human is not None:
            levels = self._known_levels(prefixes, human, people)
        judged = [Judged(prefix, 0, kind, level) for prefix, kind, level in zip(prefixes, people, levels, strict=True)]
        for i, score in zip(fit, scores[: len(fit)], strict=True):
            if score is None:
                # The text is fit to be scored, so its logits are not finite.
                judged[i] = Judged(prefixes[i], 0, people[i], levels[i], finite=False)
            elif len(score) >= FEWEST_TOKENS:
                judged[i] = Judged(
                    prefixes[i],
                    len(score),
                    people[i],
                    levels[i],
                    score.token_ids.tolist(),
                    score.nll,
                    people[i].text_features(score),
                )
        return judged

    def _people(self, prefixes: Sequence[str | list[int]], kinds: Sequence[Selection]) -> list[KindProfile]:
        """The human texts that a completion of each prompt is compared with; with `auto`, the prompt decides."""
        asked = {f"{AUTO} {prefix!r}": prefix for prefix, kind in zip(prefixes, kinds, strict=True) if kind == AUTO}
        new = [
            (key, ids) for key, prefix in asked.items() if key not in self._kinds and (ids := self._read_ids(prefix))
        ]
        bos = self.scorer.bos or []
        requests = [Request(i, 0, bos or ids[:1], ids if bos else ids[1:]) for i, (_, ids) in enumerate(new)]
        # Of this batch: what is remembered may be forgotten while it grows.
        decided = {key: self._kinds[key] for key in asked if key in self._kinds}
        for i, statistics in (self.scorer._run_all(requests, False) if requests else {}).items():
            key, ids = new[i]
            # Without a BOS, the first token has no surprisal.
            scored = ids[len(ids) - len(statistics[0]) :]
            read = TextTokens(np.array(scored), *(values.astype(np.float64) for values in statistics[:2]))
            decided[key] = self._remembered(key, partial(self._read_kind, len(ids), read), AUTO)
        return [
            decided.get(f"{AUTO} {prefix!r}") or self.human(AUTO) if kind == AUTO else self.human(kind)
            for prefix, kind in zip(prefixes, kinds, strict=True)
        ]

    def _read_kind(self, position: int, prompt: TextTokens) -> KindProfile:
        return self.profile.target(AUTO, position=position, prompt=prompt).kind

    def _read_ids(self, prefix: str | list[int]) -> list[int]:
        """Token ids of a prompt that is read for its kind, without BOS; none of a chat, whose turns are no one text."""
        bos = self.scorer.bos or []
        ids = self._ids(prefix) if isinstance(prefix, str) else prefix[len(bos) :] if prefix[:1] == bos else prefix
        return [] if len(ids) < 2 or special_tokens(self.scorer.tokenizer).intersection(ids) else list(ids)

    def _known_levels(self, prefixes: Any, human: Sequence[Text | None], people: Sequence[KindProfile]) -> list[float]:
        return [
            self._levels.get(repr((prefix, text)), kind.means["surprisal"])
            for prefix, text, kind in zip(prefixes, human, people, strict=True)
        ]

    def _without_level(
        self, prefixes: Sequence[str | list[int]], human: Sequence[Text | None], people: Sequence[KindProfile]
    ) -> dict[str, tuple[str | list[int], str, KindProfile]]:
        """Prefix, text and kind of the human completions that were not scored yet, by their key in `_levels`."""
        return {
            repr((prefix, text)): (prefix, text_of(text), kind)
            for prefix, text, kind in zip(prefixes, human, people, strict=True)
            if text is not None and repr((prefix, text)) not in self._levels
        }

    def _keep_levels(
        self, new: Mapping[str, tuple[str | list[int], str, KindProfile]], scores: Sequence[TokenScores | None]
    ) -> None:
        for (key, (_, _, kind)), score in zip(new.items(), scores, strict=True):
            if score is not None:
                self._levels[key] = float(np.nanmean(kind.curve(score.entropy)))

    def shares_tokens(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the scorer has the vocabulary of a policy's tokenizer. Raises: see `scorer`."""
        if self.scorer.tokenizer is tokenizer:
            return True
        if self._compared is None or self._compared[0]() is not tokenizer:
            same = self.scorer.tokenizer.get_vocab() == tokenizer.get_vocab()
            self._compared = weakref.ref(tokenizer), same
        return self._compared[1]

    def token_nlls(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], judged: Sequence[Judged | None]
    ) -> list[float]:
        """Mean surprisal of the drawn token ids to the scorer, in nats per token.

        The tokenizer can cut a completion's text into other ids than the policy drew. Only then are the ids scored
        here; else the mean is known from judging the text.

        Args:
            prompts (`Sequence[list[int]]`): Token ids before each completion, BOS included.
            completions (`Sequence[list[int]]`): Token ids of the completions; empty lists give NaN.
            judged (`Sequence[Judged or None]`): How the completions were judged.

        Returns:
            `list[float]`: NaN for a completion without tokens, or with a token that the scorer does not know.
        """
        nlls, requests = [math.nan] * len(completions), []
        for i, (prompt, ids, one) in enumerate(zip(prompts, completions, judged, strict=True)):
            if one is not None and one.nll is not None and (one.prompt, one.token_ids) == (prompt, ids):
                nlls[i] = one.nll
            # Some tokenizers have added tokens that the scorer has no embedding for.
            elif prompt and ids and max(prompt + ids) < len(self.scorer.head.weight):
                requests.append(Request(i, 0, prompt, ids))
        if requests:
            for i, statistics in self.scorer._run_all(requests, False).items():
                nlls[i] = float(statistics[0].mean())
        return nlls

    def as_read(self, prompts: Sequence[Text], trainer: Any) -> Sequence[Prompt]:
        """All prompts of a batch as the policy reads them: the token ids of the trainer's own method.

        A scorer with another vocabulary reads texts, and chats through its own template with the trainer's arguments
        (`chat_template_kwargs`).
        """
        if self.shares_tokens(trainer.processing_class):
            ids: list[list[int]] = trainer._tokenize_prompts(list(prompts))[0]
            return ids
        return [self.prefix(prompt, trainer.chat_template_kwargs) for prompt in prompts]

    def _ids(self, text: str) -> list[int]:
        return self.scorer.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def prefix(self, prompt: Prompt, chat_template_kwargs: Mapping[str, Any] | None = None) -> str | list[int]:
        """A prompt for the scorer: a text or token ids as they are, a chat as token ids of its template.

        Raises:
            InputError: If the prompt is a chat and the scorer has no chat template.
        """
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

    def __getstate__(self) -> dict[str, Any]:
        """Leave out models that can be loaded or taken again: a named scorer, and the policy's base."""
        state = self.__dict__.copy()
        if not isinstance(self._given_scorer, Scorer):
            state["_scorer"] = state["_profile"] = None
            state["_kinds"] = {}
        # Weak references cannot be pickled.
        state["_policy"] = state["_compared"] = None
        return state
