"""What human text looks like to one scorer: fitted from scores, kept as JSON, used with that scorer alone.

A profile holds figures, never text. It names its scorer and the hash of the weights, and `check` refuses another
scorer: surprisal, entropy and rank mean nothing across models.

It holds kinds of text (`news`, `letter`, ...), each in a domain (`creative`, `functional`). A *selection* names the
kinds to write: a kind, a domain (its kinds with equal weight), a mixture of kinds, or `auto`: the prompt decides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ugap.errors import InputError
from ugap.files import write_json
from ugap.profile.calibration import CalibrationCurve, Pooling, pool
from ugap.profile.document import VERSION, read_document, shipped_files
from ugap.profile.kind import KindProfile, ScoredTokens, mix
from ugap.profile.plain import FloatArray, member, text
from ugap.profile.positions import (
    REFERENCE,
    PlacedTokens,
    Positions,
    TextTokens,
    common_ratios,
    fit_held,
    fit_positions,
)
from ugap.profile.prompt import KIND_TOKENS, SPAN, PromptModel
from ugap.profile.reading import Reading
from ugap.profile.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ugap.scoring import Scorer
    from ugap.scoring.records import ScorerId, TokenScores

AUTO = "auto"
LIKE = "like"
Selection = str | Mapping[str, float]
_LEAST_SURPRISAL = 0.05  # nats: the regression can predict less for code
_LEAST_WEIGHT = 0.01  # a less probable kind is not mixed in


class Quantiles(NamedTuple):
    """Quantiles of one measure: a share `levels[i]` of the tokens does not exceed `values[i]`."""

    levels: FloatArray
    values: FloatArray


@dataclass(frozen=True, eq=False)
class HumanProfile:
    """The human profile of one scorer over any number of named kinds of text.

    Args:
        scorer_name (`str`): Name of the model whose scores were fitted.
        weight_hash (`str`): Fingerprint of its weights.
        source (`str`): Where the human text came from, in words.
        kinds (`Mapping[str, KindProfile]`): The profile of each kind; all have the same entropy bins.
        pooling (`Pooling`): What all kinds share.
        prompt (`PromptModel`, *optional*): Predicts level and kinds from a prompt; `None` where fewer than
            three kinds have enough texts that were scored from their start.
        readings (`Mapping[str, Reading]`): By name of another model, how it reads what the scorer writes.
        reader (`str`, *optional*): The reader, one of `readings`, that continuations should be human to; by default
            the scorer itself.

    Raises:
        ValueError: If there is no kind, or kinds do not share their entropy bins.

    Example:
        >>> HumanProfile.load("no such profile")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ugap.errors.InputError: no such profile: neither a file nor a shipped profile; shipped: ...
    """

    scorer_name: str
    weight_hash: str
    source: str
    kinds: Mapping[str, KindProfile]
    pooling: Pooling
    prompt: PromptModel | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    reader: str | None = None

    def __post_init__(self) -> None:
        if not self.kinds:
            raise ValueError("a human profile needs a kind")
        for name, kind in self.kinds.items():
            if not np.array_equal(kind.bins.edges, self.pooling.edges):
                raise ValueError(f"kind {_short(name)} has other entropy bins than the profile")
        if self.prompt is not None and not set(self.prompt.kinds) <= set(self.kinds):
            raise ValueError("the prompt model names a kind that is not there")

    @classmethod
    def fit(
        cls,
        texts: Mapping[str, Sequence["TokenScores"]],
        *,
        prefixes: Mapping[str, Sequence["TokenScores | None"]] | None = None,
        domains: Mapping[str, str] | None = None,
        source: str = "",
        resamples: int = 200,
        seed: int = 0,
    ) -> "HumanProfile":
        """Fit a profile to the scores of human texts.

        Args:
            texts (`Mapping[str, Sequence[TokenScores]]`): Scored human texts by kind, all by one scorer.
            prefixes (`Mapping[str, Sequence[TokenScores or None]]`, *optional*): By kind, the scored tokens before each
                text, from the start of the text. They show how surprisal depends on the position and on the prompt.
                Without them a profile knows neither.
            domains (`Mapping[str, str]`, *optional*): Domain of each kind; by default a domain of the kind's name.
            source (`str`, *optional*): Where the text came from, in words.
            resamples (`int`, *optional*, defaults to `200`): Bootstrap resamples of the calibration curve's band.
            seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap, which starts anew for every kind.

        Returns:
            `HumanProfile`: The profile.

        Raises:
            InputError: If there is no kind, a kind holds no scored token, or two scorers are mixed.
            ValueError: If `resamples` is not positive.
        """
        if resamples < 1:
            raise ValueError(f"resamples: expected a positive number, got {resamples}")
        if not texts:
            raise InputError("no kind to fit a human profile on")
        scorers = {scores.scorer.weight_hash: scores.scorer for column in texts.values() for scores in column}
        if len(scorers) > 1:
            one, other, *_ = scorers.values()
            raise InputError(f"scores of different scorers, {_named(*one)} and {_named(*other)}, make no profile")
        tokens = {kind: ScoredTokens.of(kind, column) for kind, column in texts.items()}
        before = {kind: _before(column, (prefixes or {}).get(kind)) for kind, column in texts.items()}
        positions = fit_positions({kind: PlacedTokens.of(column, before[kind]) for kind, column in texts.items()})
        # Common curve and bins come first: each kind is shrunk toward them.
        pooling = pool([one.human for one in tokens.values()])
        kinds = {
            kind: KindProfile.fit(
                (domains or {}).get(kind, kind),
                column,
                tokens[kind],
                positions[kind],
                pooling,
                resamples=resamples,
                seed=seed,
            )
            for kind, column in texts.items()
        }
        # A prompt is read from the start of a text, so texts without a known prefix say nothing about prompts.
        whole = {
            kind: [
                TextTokens.of(one, scores) for one, scores in zip(before[kind], column, strict=True) if one is not None
            ]
            for kind, column in texts.items()
        }
        (scorer,) = scorers.values()
        return cls(scorer.name, scorer.weight_hash, source, kinds, pooling, PromptModel.fit(whole, positions))

    def like(
        self,
        texts: Sequence["TokenScores"],
        prefixes: Sequence["TokenScores | None"] | None = None,
        *,
        domain: str = "creative",
        resamples: int = 200,
        seed: int = 0,
    ) -> "HumanProfile":
        """Add the kind `like`, fitted to given texts: the fewer the texts, the more the kind resembles the others.

        Its curve and its bins are shrunk toward those that all kinds share. Its mean surprisal is that of the texts,
        averaged with the prediction of the prompt model for them; each is weighted by its precision.

        Args:
            texts (`Sequence[TokenScores]`): Scored texts, by the scorer of this profile.
            prefixes (`Sequence[TokenScores or None]`, *optional*): The scored tokens before each text.
            domain (`str`, *optional*, defaults to `"creative"`): Domain of the kind.
            resamples (`int`, *optional*, defaults to `200`): Bootstrap resamples of the calibration curve's band.
            seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

        Raises:
            InputError: If no token has a score, or a text was scored by another model.
        """
        for scores in texts:
            self.check(scores.scorer)
        tokens, before = ScoredTokens.of(LIKE, texts), _before(texts, prefixes)
        # A few texts say little about positions, so their means are shrunk toward those of the other kinds.
        positions = fit_held(PlacedTokens.of(texts, before), common_ratios(self.kinds_positions()))
        kind = KindProfile.fit(domain, texts, tokens, positions, self.pooling, resamples=resamples, seed=seed)
        expected = [
            reading.mean_surprisal / float(np.nanmean(scores.surprisal))
            for one, scores in zip(before, texts, strict=True)
            if self.prompt is not None and one is not None
            if (reading := self.prompt.read(TextTokens.of(one))) is not None
        ]
        if expected and self.prompt is not None and np.isfinite(kind.error):
            # As ratios to the texts' own means, so that differences between single texts cancel.
            prior, spread = float(np.mean(expected)), float(self.prompt.kind_deviation.mean()) / kind.means["surprisal"]
            own = (kind.error / kind.means["surprisal"]) ** 2
            ratio = (prior * own + spread**2) / (own + spread**2)
            error = kind.error * spread / np.sqrt(own + spread**2)
            kind = kind.scaled(ratio, error)
        return replace(self, kinds={**self.kinds, LIKE: kind})

    @classmethod
    def load(cls, name_or_path: str | Path) -> "HumanProfile":
        """Load a profile from a file, or a shipped one by its scorer's name; a file of that name comes first.

        Raises:
            InputError: If there is neither, or the file is damaged or of another version.
        """
        path = Path(name_or_path)
        if path.is_file():
            return _read(path)
        shipped = shipped_files()
        if str(name_or_path) not in shipped:
            names = ", ".join(sorted(shipped)) or "none"
            raise InputError(f"{name_or_path}: neither a file nor a shipped profile; shipped: {names}")
        with resources.as_file(shipped[str(name_or_path)]) as file:
            return _read(file)

    @classmethod
    def find_shipped(cls, scorer: "ScorerId") -> "HumanProfile | None":
        """The shipped profile that was fitted with a scorer's weights, if there is one."""
        for entry in shipped_files().values():
            with resources.as_file(entry) as file:
                profile = _read(file)
            if profile.weight_hash == scorer.weight_hash:
                return profile
        return None

    @classmethod
    def for_model(cls, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "HumanProfile":
        """The profile of any model; see [`profile_for`][ugap.profile.profile_for]."""
        from ugap.profile.fitting import profile_for

        return profile_for(model, tokenizer)

    @classmethod
    def for_scorer(cls, scorer: "Scorer") -> "HumanProfile":
        """The profile of any scorer; see [`profile_for`][ugap.profile.profile_for]."""
        from ugap.profile.fitting import scorer_profile

        return scorer_profile(scorer)

    @classmethod
    def shipped_for(cls, scorer: "ScorerId") -> "HumanProfile":
        """The shipped profile that was fitted with a scorer's weights.

        Raises:
            InputError: If there is none; the message says how to fit one.
        """
        profile = cls.find_shipped(scorer)
        if profile is not None:
            return profile
        raise InputError(f"no shipped human profile fits {_named(*scorer)}: fit one with `ugap profile --model ...`")

    def save(self, path: str | Path) -> None:
        """Write the profile as JSON; the file is whole or absent."""
        write_json(path, self.to_dict(), indent=None)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document that `save` writes."""
        return {
            "version": VERSION,
            "scorer": {"name": self.scorer_name, "weight_hash": self.weight_hash},
            "source": self.source,
            "kinds": {name: kind.to_dict() for name, kind in self.kinds.items()},
            "pooling": self.pooling.to_dict(),
            "prompt": None if self.prompt is None else self.prompt.to_dict(),
            "readings": {name: reading.to_dict() for name, reading in self.readings.items()},
        }

    @classmethod
    def from_dict(cls, document: Any) -> "HumanProfile":
        """The profile of a JSON document, as `to_dict` makes it.

        Raises:
            ValueError: If a part is missing or damaged; the message names it.
        """
        scorer, entries = member(document, "scorer"), member(document, "kinds")
        scorer_name, weight_hash = (text(member(scorer, name), name) for name in ("name", "weight_hash"))
        source = text(member(document, "source"), "source")
        pooling = Pooling.from_dict(member(document, "pooling"))
        prompt = None if document.get("prompt") is None else PromptModel.from_dict(document["prompt"])
        if not isinstance(entries, dict):
            raise ValueError("'kinds' is no object")
        kinds = {}
        for name, entry in entries.items():
            try:
                kinds[name] = KindProfile.from_dict(entry)
            except ValueError as error:
                raise ValueError(f"kind {_short(name)}: {error}") from error
        # Profiles that were not calibrated for a reader have none.
        readings = document.get("readings", {})
        if not isinstance(readings, dict):
            raise ValueError("'readings' is no object")
        read = {name: Reading.from_dict(name, entry) for name, entry in readings.items()}
        return cls(scorer_name, weight_hash, source, kinds, pooling, prompt, read)

    def read_by(self, reader: str | None = None) -> "HumanProfile":
        """The same profile, for continuations that are human to another model.

        Args:
            reader (`str`, *optional*): Name of a model that the profile was calibrated for; by default the first one,
                or the scorer itself where there is none.

        Raises:
            InputError: If the profile was not calibrated for the reader; the message lists those that it was.
        """
        if reader is None:
            return replace(self, reader=next(iter(self.readings), None))
        if reader not in self.readings:
            known = f"it knows {', '.join(self.readings)}" if self.readings else "it knows none"
            raise InputError(f"the human profile was not calibrated for the reader {reader!r}; {known}")
        return replace(self, reader=reader)

    @property
    def scorer(self) -> "ScorerId":
        """The model whose scores were fitted."""
        # Imported here, so that a profile can be read where the libraries that run models are absent.
        from ugap.scoring.records import ScorerId

        return ScorerId(self.scorer_name, self.weight_hash)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order of their first kinds."""
        return tuple(dict.fromkeys(kind.domain for kind in self.kinds.values()))

    def check(self, scorer: "ScorerId") -> None:
        """Refuse a scorer whose weights are not those that the profile was fitted with.

        Raises:
            InputError: If the weight hashes differ; the message names both scorers.
        """
        if scorer.weight_hash != self.weight_hash:
            fitted = _named(self.scorer_name, self.weight_hash)
            raise InputError(f"the human profile was fitted with {fitted}, not with {_named(*scorer)}")

    def weights(self, selection: Selection) -> dict[str, float]:
        """The probability of each kind in a selection; the probabilities add up to 1.

        Args:
            selection (`str` or `Mapping[str, float]`): A kind, a domain, a mixture, or `auto`: without a prompt the
                creative kinds, or all where none is creative.

        Raises:
            InputError: If a kind is unknown, a weight of a mixture is not a number of at least 0, or all weights are 0.
        """
        if isinstance(selection, str):
            if selection in self.kinds:
                return {selection: 1.0}
            domain = selection
            if selection == AUTO:
                domain = "creative" if "creative" in self.domains else self.domains[0]
            # Texts to write like are followed where they are named, and are no part of a domain.
            members = [name for name, kind in self.kinds.items() if kind.domain == domain and name != LIKE]
            if not members:
                raise InputError(f"the human profile has no kind {selection!r}; it has {self._known()}")
            return dict.fromkeys(members, 1 / len(members))
        for name, weight in selection.items():
            if name not in self.kinds:
                raise InputError(f"the human profile has no kind {name!r}; it has {self._known()}")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                raise InputError(f"the weight of kind {name!r} is {weight!r}, no number from 0")
        total = sum(selection.values())
        if not total > 0:
            raise InputError("a mixture of kinds needs a weight above 0")
        return {name: weight / total for name, weight in selection.items() if weight}

    def kind(self, selection: Selection) -> KindProfile:
        """The profile of a selection; raises as `weights` does."""
        weights = self.weights(selection)
        return mix([self.kinds[name] for name in weights], list(weights.values()))

    def target(
        self,
        selection: Selection = AUTO,
        *,
        position: int = REFERENCE,
        prompt: TextTokens | None = None,
        otherwise: Selection | None = None,
    ) -> Target:
        """The human text that a continuation of a prompt should resemble.

        Args:
            selection (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): A kind, a domain or a mixture.
                With `auto` the prompt decides: on the level from 16 tokens on, on the kinds from 48 tokens on.
            position (`int`, *optional*, defaults to `64`): Tokens before the continuation.
            prompt (`TextTokens`, *optional*): The prompt's tokens as the scorer reads them.
            otherwise (`str` or `Mapping[str, float]`, *optional*): With `auto`, the kinds where the prompt does not
                decide on them; by default the creative kinds.

        Raises:
            InputError: As `weights`.
        """
        weights = self.weights(otherwise if selection == AUTO and otherwise is not None else selection)
        reading = None if prompt is None or self.prompt is None else self.prompt.read(prompt)
        strange = reading is not None and reading.strange
        aim = None if self.reader is None else self.readings[self.reader]
        if selection != AUTO or reading is None:
            kind = mix([self.kinds[name] for name in weights], list(weights.values()))
            return Target(kind, weights, position, kind.positions.mean_surprisal(position, SPAN), strange, aim)
        if position >= KIND_TOKENS and reading.kinds:
            weights = {name: weight for name, weight in reading.kinds.items() if weight >= _LEAST_WEIGHT}
            total = sum(weights.values())
            weights = {name: weight / total for name, weight in weights.items()}
        kind = mix([self.kinds[name] for name in weights], list(weights.values()))
        return Target(kind, weights, position, max(reading.mean_surprisal, _LEAST_SURPRISAL), strange, aim)

    def without(self, kind: str) -> "HumanProfile":
        """The profile without a kind, to judge what the others predict for it: its prompts are left out too.

        What all kinds share (`pooling`) stays as it was fitted.

        Raises:
            InputError: If the profile lacks the kind, or has no other one.
        """
        self.weights(kind)
        kinds = {name: profile for name, profile in self.kinds.items() if name != kind}
        if kind not in self.kinds or not kinds:
            raise InputError(f"the human profile cannot do without {kind!r}; its kinds are {', '.join(self.kinds)}")
        readings = {name: left for name, one in self.readings.items() if (left := one.without(kind)) is not None}
        prompt = None if self.prompt is None else self.prompt.without(kind)
        return replace(self, kinds=kinds, prompt=prompt, readings=readings)

    def curve(self, selection: Selection) -> CalibrationCurve:
        """The calibration curve of a selection; raises as `weights` does."""
        return self.kind(selection).curve

    def quantiles(self, selection: Selection, measure: str) -> Quantiles:
        """Quantiles of `surprisal`, `entropy`, `deviation`, `rank` or `pmi` in a selection.

        Raises:
            InputError: If the profile lacks the kind or the measure; the message names those it has.
        """
        profile = self.kind(selection)
        if measure not in profile.quantiles:
            names = ", ".join(profile.quantiles)
            raise InputError(f"the human profile of {selection!r} has no {measure!r}; it has {names}")
        return Quantiles(profile.levels, profile.quantiles[measure])

    def _known(self) -> str:
        """Kinds and domains, as an error lists them."""
        return ", ".join(dict.fromkeys([*self.kinds, *self.domains]))

    def kinds_positions(self) -> dict[str, Positions]:
        """The means by position of each kind."""
        return {name: kind.positions for name, kind in self.kinds.items()}


def _before(
    texts: Sequence["TokenScores"], prefixes: Sequence["TokenScores | None"] | None
) -> list["TokenScores | None"]:
    """The prefix of each text, None where none is known."""
    if prefixes is None:
        return [None] * len(texts)
    if len(prefixes) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(prefixes)} prefixes")
    return list(prefixes)


def _named(name: str, weight_hash: str) -> str:
    return f"{name!r} (weights {weight_hash})"


def _read(path: Path) -> HumanProfile:
    document = read_document(path)
    try:
        return HumanProfile.from_dict(document)
    except ValueError as error:
        raise InputError(f"{path}: a damaged human profile: {error}") from error


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")
