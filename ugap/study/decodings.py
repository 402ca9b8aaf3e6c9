"""Ways to decode, by name: the ones that are known, and any `generate()` settings a person names.

A setting is one of `generate()`, or of the sampler at human uncertainty:

- `human_mode`: `creative`, `balanced` or `precise`; or `human_weight`, a share of the model's own human level;
- `human_reader`: a model that the text should be human to;
- `human_kind`: by default `auto`, where the prompt decides, or else the domain of the text;
- `human_tail`: where the human tail is cut, `null` for nowhere;
- `human_profile`: by default the profile of the model.

Every decoding spells out all the warpers, because `generate()` fills in its own where they are left unset (`top_k=50`
alone costs more than a nat of surprisal). Behind them tokens are drawn by [`DrawLogitsProcessor`][].
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ugap.errors import InputError, reading
from ugap.profile.profile import AUTO
from ugap.sampling import DrawLogitsProcessor, HumanEntropyLogitsProcessor, profile_of, weight_of
from ugap.sampling.batch import padding_token, suppressed_tokens
from ugap.sampling.params import TAIL
from ugap.sampling.portable.params_processor import WITHOUT_EFFECT
from ugap.study.named import DECODINGS, STUDIED, Settings, check_names, is_human

__all__ = [
    "DECODINGS",
    "NO_WARPERS",
    "STUDIED",
    "Settings",
    "decoder",
    "generation_config",
    "human_processor",
    "is_deterministic",
    "is_human",
    "parse_decodings",
    "parse_value",
]


NO_WARPERS: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "temperature": 1.0,
    "top_h": None,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
}

# What shapes the distribution that is drawn from, in the order in which generate() would apply it; each refuses a
# value that is out of its range.
_WARPERS: dict[str, Callable[[Any], LogitsProcessor]] = {
    "temperature": TemperatureLogitsWarper,
    "top_h": TopHLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}
# Where nothing is sampled: transformers warns where a warper is set, and takes that of the model where none is.
_IDLE = {"do_sample": False, **{name: WITHOUT_EFFECT.get(name) for name in _WARPERS}}
_MADE_OF = {**_WARPERS, "repetition_penalty": RepetitionPenaltyLogitsProcessor}

# Settings of the sampler at human uncertainty.
_HUMAN = ("human_mode", "human_weight", "human_reader", "human_kind", "human_profile", "human_tail")

# How many texts of which length come out, and in what form, is the study's to say.
_FIXED = {
    "max_length",
    "max_new_tokens",
    "min_length",
    "min_new_tokens",
    "num_return_sequences",
    "return_dict_in_generate",
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
}


def parse_decodings(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Decodings from what a person typed: known names, or `NAME=setting:value,setting:value`.

    Args:
        names (`Sequence[str]`): For instance `["ancestral", "warm=temperature:1.1,top_p:0.95"]`.

    Returns:
        `dict[str, dict[str, Any]]`: Settings by name.

    Raises:
        InputError: If a name is unknown, doubled, or a setting is none of `generate()`.

    Example:
        >>> parse_decodings(["greedy", "warm=temperature:1.1,top_p:0.95"])
        {'greedy': {'do_sample': False}, 'warm': {'temperature': 1.1, 'top_p': 0.95}}
    """
    check_names(names)
    out: dict[str, dict[str, Any]] = {}
    for word in names:
        name, custom, settings = word.partition("=")
        out[name] = _parse_settings(word, settings) if custom else dict(DECODINGS[name])
        # Made to be checked: a wrong value is refused before a model is loaded.
        generation_config(out[name], max_new_tokens=1)
    return out


def generation_config(settings: Settings, **fixed: Any) -> GenerationConfig:
    """The whole generation config of a decoding; what it leaves unset is switched off.

    Raises:
        InputError: If transformers refuses a setting, or the sampler at human uncertainty is combined with another.
    """
    if is_human(settings):
        weight_of(settings.get("human_mode"), settings.get("human_weight"))
        beside = sorted(set(settings) & {*_WARPERS, "do_sample", "num_beams"})
        if beside:
            ours = "human_mode" if "human_mode" in settings else "human_weight"
            raise InputError(f"decoding settings {dict(settings)}: {ours} and {beside[0]} exclude each other")
    elif any(name in settings for name in _HUMAN):
        raise InputError(f"decoding settings {dict(settings)}: human_mode or human_weight is missing")
    try:
        for name, value in settings.items():
            if name in _MADE_OF and value != NO_WARPERS[name]:
                _MADE_OF[name](value)
        given = {name: value for name, value in settings.items() if name not in _HUMAN}
        # Greedy with a temperature set is a warning of transformers on every batch.
        unset = NO_WARPERS if settings.get("do_sample", True) else {**NO_WARPERS, **_IDLE}
        config = GenerationConfig(**{**unset, **given, **fixed})
        # Without `strict` transformers only warns of settings that have no effect.
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(f"decoding settings {dict(settings)}: {' '.join(str(error).split())}") from error
    return config


def is_deterministic(settings: Settings) -> bool:
    """Whether a decoding gives one text whatever the seed.

    Example:
        >>> is_deterministic(DECODINGS["greedy"]), is_deterministic({"human_weight": 0.5})
        (True, False)
    """
    greedy = settings.get("human_weight") == 0 or settings.get("human_mode") == "precise"
    return greedy or not settings.get("do_sample", True)


def decoder(
    settings: Settings,
    model: PreTrainedModel,
    domain: str | None,
    processors: Sequence[LogitsProcessor] = (),
    *,
    generator: torch.Generator,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **fixed: Any,
) -> tuple[GenerationConfig, list[LogitsProcessor]]:
    """What to pass to `generate()`: its config, and the processors that shape the distribution and draw from it.

    Args:
        settings (`Mapping[str, Any]`): A decoding of `DECODINGS` or like it.
        model (`PreTrainedModel`): The model that generates: it says which human profile is its own.
        domain (`str`, *optional*): Domain of the texts: the kinds of a prompt that does not decide on them.
        processors (`Sequence[LogitsProcessor]`, *optional*): What else shapes the distribution.
        generator (`torch.Generator`): Where the draw's randomness comes from, on the model's device.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's. With it, the sampler at human uncertainty draws
            no special tokens, and a model without a human profile gets one.
        fixed (`Any`): Settings of `generate()` that are no matter of decoding.

    Raises:
        InputError: If there is no human profile of the model, or transformers refuses a setting.
    """
    config = generation_config(settings, **fixed)
    if is_human(settings):
        processor = human_processor(settings, model, domain, tokenizer=tokenizer, generator=generator)
        # Our processor draws; generate() then has to take the one token that is left.
        config.update(**_IDLE)
        return config, [*processors, processor]
    if not config.do_sample or config.num_beams != 1:
        # Beams are drawn by generate() itself, which keeps several tokens a step.
        return config, [*processors]
    warpers = [
        warper(getattr(config, name)) for name, warper in _WARPERS.items() if getattr(config, name) != NO_WARPERS[name]
    ]
    config.update(**_IDLE)
    return config, [*warpers, *processors, DrawLogitsProcessor(generator)]


def human_processor(
    settings: Settings,
    model: PreTrainedModel,
    domain: str | None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generator: torch.Generator | None = None,
) -> HumanEntropyLogitsProcessor:
    """The processor of a decoding at human uncertainty, which draws; arguments and errors as of `decoder`."""
    profile = profile_of(model, settings.get("human_profile"), tokenizer, reader=settings.get("human_reader"))
    return HumanEntropyLogitsProcessor(
        profile,
        settings.get("human_kind") or AUTO,
        settings.get("human_weight"),
        mode=settings.get("human_mode"),
        tail=settings.get("human_tail", TAIL),
        draw=True,
        generator=generator,
        suppress_tokens=() if tokenizer is None else suppressed_tokens(model, tokenizer),
        pad_token_id=None if tokenizer is None else padding_token(tokenizer),
        model=model,
        otherwise=domain if domain in (*profile.kinds, *profile.domains) else None,
    )


def parse_value(text: str, where: str) -> Any:
    """A value on the command line, with the types of YAML.

    Raises:
        InputError: If it is none, such as a date that does not exist; the message begins with `where`.

    Example:
        >>> parse_value("0.7", "temperature"), parse_value("null", "human_tail")
        (0.7, None)
    """
    with reading(f"{where}: {text[:40]!r} is not a value"):
        return yaml.safe_load(text)


def _parse_settings(word: str, text: str) -> dict[str, Any]:
    allowed = {*GenerationConfig().to_dict(), *_HUMAN}
    out: dict[str, Any] = {}
    for part in text.split(","):
        setting, colon, value = part.partition(":")
        setting = setting.strip()
        if not colon or setting not in allowed:
            raise InputError(f"decoding {word!r}: {part!r} is not a generate() setting as setting:value")
        if setting in _FIXED:
            raise InputError(f"decoding {word!r}: {setting} is not a setting of a decoding, the study sets it")
        out[setting] = parse_value(value, f"decoding {word!r}")
        # `temperature:1` is an int to YAML, and the warpers of transformers refuse one.
        if isinstance(out[setting], int) and isinstance(NO_WARPERS.get(setting), float):
            out[setting] = float(out[setting])
    return out
