"""What human text looks like to one scorer: fitted from scores, kept as JSON, used with that scorer alone.

A profile holds figures, never text. It names its scorer and the hash of the weights, and `check` refuses another
scorer: surprisal, entropy and rank mean nothing across models.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ugap.errors import InputError
from ugap.files import write_json
from ugap.profile.calibration import CalibrationCurve, FloatArray
from ugap.profile.domain import DomainProfile
from ugap.profile.plain import member, text

if TYPE_CHECKING:
    from ugap.scoring.records import ScorerId, TokenScores

VERSION = 1
_MOST_BYTES = 32 * 2**20  # a domain takes some 25 thousand


class Quantiles(NamedTuple):
    """Quantiles of one measure: a share `levels[i]` of the tokens does not exceed `values[i]`."""

    levels: FloatArray
    values: FloatArray


@dataclass(frozen=True, eq=False)
class HumanProfile:
    """The human profile of one scorer over any number of named domains.

    Args:
        scorer_name (`str`): Name of the model whose scores were fitted.
        weight_hash (`str`): Fingerprint of its weights.
        source (`str`): Where the human text came from, in words.
        by_domain (`Mapping[str, DomainProfile]`): The profile of each domain.

    Example:
        >>> HumanProfile.load("no such profile")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ugap.errors.InputError: no such profile: neither a file nor a shipped profile; shipped: ...
    """

    scorer_name: str
    weight_hash: str
    source: str
    by_domain: Mapping[str, DomainProfile]

    @classmethod
    def fit(
        cls,
        scores_by_domain: Mapping[str, Sequence["TokenScores"]],
        *,
        source: str = "",
        resamples: int = 200,
        seed: int = 0,
    ) -> "HumanProfile":
        """Fit a profile to the scores of human texts.

        Args:
            scores_by_domain (`Mapping[str, Sequence[TokenScores]]`): Scored human texts by domain, all by one scorer.
            source (`str`, *optional*): Where the text came from, in words.
            resamples (`int`, *optional*, defaults to `200`): Bootstrap resamples of the calibration curve's band.
            seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap, which starts anew for every domain.

        Returns:
            `HumanProfile`: The profile.

        Raises:
            InputError: If there is no domain, a domain holds no scored token, or two scorers are mixed.
            ValueError: If `resamples` is not positive.
        """
        if resamples < 1:
            raise ValueError(f"resamples: expected a positive number, got {resamples}")
        if not scores_by_domain:
            raise InputError("no domain to fit a human profile on")
        scorers = {scores.scorer.weight_hash: scores.scorer for texts in scores_by_domain.values() for scores in texts}
        if len(scorers) > 1:
            one, other, *_ = scorers.values()
            raise InputError(f"scores of different scorers, {_named(*one)} and {_named(*other)}, make no profile")
        by_domain = {
            domain: DomainProfile.fit(domain, texts, resamples=resamples, seed=seed)
            for domain, texts in scores_by_domain.items()
        }
        (scorer,) = scorers.values()
        return cls(scorer.name, scorer.weight_hash, source, by_domain)

    @classmethod
    def load(cls, name_or_path: str | Path) -> "HumanProfile":
        """Load a profile from a file, or a shipped one by its scorer's name; a file of that name comes first.

        Raises:
            InputError: If there is neither, or the file is damaged or of another version.
        """
        path = Path(name_or_path)
        if path.is_file():
            return _read(path)
        shipped = _shipped()
        if str(name_or_path) not in shipped:
            names = ", ".join(sorted(shipped)) or "none"
            raise InputError(f"{name_or_path}: neither a file nor a shipped profile; shipped: {names}")
        with resources.as_file(shipped[str(name_or_path)]) as file:
            return _read(file)

    @classmethod
    def shipped_for(cls, scorer: "ScorerId") -> "HumanProfile":
        """The shipped profile that was fitted with a scorer's weights.

        Raises:
            InputError: If there is none; the message says how to fit one.
        """
        for entry in _shipped().values():
            with resources.as_file(entry) as file:
                profile = _read(file)
            if profile.weight_hash == scorer.weight_hash:
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
            "domains": {domain: profile.to_dict() for domain, profile in self.by_domain.items()},
        }

    @property
    def scorer(self) -> "ScorerId":
        """The model whose scores were fitted."""
        # Imported here, so that a profile can be read where the libraries that run models are absent.
        from ugap.scoring.records import ScorerId

        return ScorerId(self.scorer_name, self.weight_hash)

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains."""
        return tuple(self.by_domain)

    def check(self, scorer: "ScorerId") -> None:
        """Refuse a scorer whose weights are not those that the profile was fitted with.

        Raises:
            InputError: If the weight hashes differ; the message names both scorers.
        """
        if scorer.weight_hash != self.weight_hash:
            fitted = _named(self.scorer_name, self.weight_hash)
            raise InputError(f"the human profile was fitted with {fitted}, not with {_named(*scorer)}")

    def domain(self, domain: str) -> DomainProfile:
        """The profile of one domain.

        Raises:
            InputError: If the profile lacks the domain; the message names those it has.
        """
        if domain not in self.by_domain:
            raise InputError(f"the human profile has no domain {domain!r}; it has {', '.join(self.domains)}")
        return self.by_domain[domain]

    def curve(self, domain: str) -> CalibrationCurve:
        """The calibration curve of one domain; raises as `domain` does."""
        return self.domain(domain).curve

    def quantiles(self, domain: str, measure: str) -> Quantiles:
        """Quantiles of `surprisal`, `entropy`, `deviation`, `rank` or `pmi` in one domain.

        Raises:
            InputError: If the profile lacks the domain or the measure; the message names those it has.
        """
        profile = self.domain(domain)
        if measure not in profile.quantiles:
            names = ", ".join(profile.quantiles)
            raise InputError(f"the human profile of {domain!r} has no {measure!r}; it has {names}")
        return Quantiles(profile.levels, profile.quantiles[measure])


def _named(name: str, weight_hash: str) -> str:
    return f"{name!r} (weights {weight_hash})"


def _shipped() -> dict[str, Any]:
    """Files of the shipped profiles by name."""
    folder = resources.files("ugap.profile") / "shipped"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []
    return {entry.name.removesuffix(".json"): entry for entry in entries if entry.name.endswith(".json")}


def _read(path: Path) -> HumanProfile:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: not a human profile: more than {_MOST_BYTES:,} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a human profile: {error}") from error
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise InputError(f"{path}: not a human profile: it has no version")
    if document["version"] != VERSION:
        shown = str(document["version"])[:12]
        raise InputError(f"{path}: a human profile of version {shown}; this ugap reads version {VERSION}")
    where = "a damaged human profile"
    try:
        scorer, domains = member(document, "scorer"), member(document, "domains")
        scorer_name, weight_hash = (text(member(scorer, name), name) for name in ("name", "weight_hash"))
        source = text(member(document, "source"), "source")
        if not isinstance(domains, dict) or not domains:
            raise ValueError("'domains' is no object with a domain")
        by_domain = {}
        for name, entry in domains.items():
            where = f"a damaged human profile: domain {_short(name)}"
            by_domain[name] = DomainProfile.from_dict(entry)
    except ValueError as error:
        raise InputError(f"{path}: {where}: {error}") from error
    return HumanProfile(scorer_name, weight_hash, source, by_domain)


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")
