"""Which human text the decodings of a study follow: known kinds, or given texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data import content_hash
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.fitting import certainty, check_like, named_profile
from ugap.profile.profile import AUTO, LIKE
from ugap.sampling import profile_of
from ugap.scoring import Scorer
from ugap.study.named import Settings, is_human


@dataclass(frozen=True)
class Following:
    """The decodings of one model.

    Args:
        decodings (`dict[str, Mapping[str, Any]]`): Settings by name.
        certainty (`str`): How certain the human level of the given texts is, in words; empty without texts.
    """

    decodings: dict[str, Settings]
    certainty: str = ""


def with_profile(
    decodings: Mapping[str, Settings], profile: str | None = None, reader: str | None = None
) -> dict[str, Settings]:
    """The decodings; those at human uncertainty that name no human profile take this one, and modes this reader.

    Example:
        >>> with_profile({"greedy": {"do_sample": False}, "half": {"human_weight": 0.5}}, "mine.json")
        {'greedy': {'do_sample': False}, 'half': {'human_profile': 'mine.json', 'human_weight': 0.5}}
    """
    out: dict[str, Settings] = dict(decodings)
    for name, how in decodings.items():
        if profile is not None and is_human(how):
            # A profile that the decoding names wins.
            out[name] = {"human_profile": profile, **how}
        if reader is not None and "human_mode" in how:
            # A weight is a share of the writer's own human level.
            out[name] = {"human_reader": reader, **out[name]}
    return out


def check_kinds(decodings: Mapping[str, Settings], models: Sequence[str]) -> None:
    """Refuse kinds of text that no profile has, as far as that is known before a model is loaded.

    Args:
        decodings (`Mapping[str, Mapping[str, Any]]`): Settings by name.
        models (`Sequence[str]`): Names of the models that write.

    Raises:
        InputError: If a profile lacks a kind, or cannot be read; the message lists the kinds that it has.
    """
    for name, how in decodings.items():
        if not is_human(how):
            continue
        given = how.get("human_profile")
        # None for a model whose profile is not known by its name: its kinds are checked once it is loaded.
        profiles = [named_profile(model) for model in models] if given is None else [HumanProfile.load(given)]
        for profile in profiles:
            try:
                if profile is not None:
                    profile.weights(how.get("human_kind") or AUTO)
            except InputError as error:
                raise InputError(f"decoding {name!r}: {error}") from error


def check_texts(like: Sequence[str], decodings: Mapping[str, Settings], continued: Sequence[str]) -> None:
    """Refuse texts to write like that no decoding follows, or that are continued.

    Args:
        like (`Sequence[str]`): The texts; none are right for all decodings.
        decodings (`Mapping[str, Mapping[str, Any]]`): Settings by name.
        continued (`Sequence[str]`): The human texts whose prefixes are continued.

    Raises:
        InputError: See above; as `ugap.profile.fitting.check_like`.
    """
    if not like:
        return
    if not _steered(decodings):
        raise InputError(
            "no decoding follows the texts to write like: name ugap-creative, or another one at human uncertainty "
            "without a kind"
        )
    check_like(like, continued)


def following(
    decodings: Mapping[str, Settings],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    like: Sequence[str],
    readers: Mapping[str, Scorer] | None = None,
) -> Following:
    """The decodings of a model: with texts to write like, or another reader, the profile for them is made, once.

    Args:
        decodings (`Mapping[str, Mapping[str, Any]]`): Settings by name.
        model (`PreTrainedModel`): The model that generates.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        like (`Sequence[str]`): The texts that decodings at human uncertainty write like, where they name no kind.
        readers (`Mapping[str, Scorer]`, *optional*): Readers that are loaded already, by the name in the settings.

    Raises:
        InputError: If a profile is of another model, the texts are too few, or a reader cannot be loaded.
    """
    out, certain = dict(decodings), ""
    steered = _steered(decodings) if like else []
    for name, how in decodings.items():
        reader = how.get("human_reader")
        if name in steered or reader is not None:
            profile = profile_of(
                model,
                how.get("human_profile"),
                tokenizer,
                like=like if name in steered else None,
                reader=None if reader is None else (readers or {}).get(reader, reader),
            )
            out[name] = {**how, "human_profile": profile}
        if name in steered:
            out[name] = {**out[name], "human_kind": LIKE}
            certain = certainty(profile)
    return Following(out, certain)


def like_hash(like: Sequence[str]) -> str | None:
    """A fingerprint of the texts to write like, for the settings of a study: it holds figures, and no text."""
    return content_hash(list(like)) if like else None


def plain(settings: Settings) -> dict[str, Any]:
    """The settings that JSON can hold: without a human profile, unless it is named by its file."""
    return {name: value for name, value in settings.items() if not isinstance(value, HumanProfile)}


def _steered(decodings: Mapping[str, Settings]) -> list[str]:
    return [name for name, how in decodings.items() if is_human(how) and how.get("human_kind") in (None, AUTO)]
