"""Ways to decode, by name: the ones that are studied by default, and any `generate()` settings a person names.

Every decoding spells out all the warpers, because `generate()` fills in its own where they are left unset (`top_k=50`
alone costs more than a nat of surprisal).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from ugap.errors import InputError

Settings = Mapping[str, Any]

_NO_WARPERS: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
}

# What generate() makes of a setting that is on; each refuses a value that is out of its range.
_MADE_OF: dict[str, Callable[[Any], object]] = {
    "temperature": TemperatureLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "repetition_penalty": RepetitionPenaltyLogitsProcessor,
}

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

DECODINGS: dict[str, Settings] = {
    "ancestral": {},
    "top-p-0.9": {"top_p": 0.9},
    "temperature-0.7": {"temperature": 0.7},
    "top-k-50": {"top_k": 50},
    "min-p-0.1": {"min_p": 0.1},
    "typical-p-0.95": {"typical_p": 0.95},
    "greedy": {"do_sample": False},
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
    out: dict[str, dict[str, Any]] = {}
    for word in names:
        name, custom, settings = word.partition("=")
        if not custom and name not in DECODINGS:
            raise InputError(
                f"unknown decoding {name!r}: choose of {', '.join(DECODINGS)}, or give NAME=setting:value,..."
            )
        if name in out or not name or name in ("human", "given"):
            raise InputError(f"decoding {word!r}: the name {name!r} is taken")
        out[name] = _parse_settings(word, settings) if custom else dict(DECODINGS[name])
        generation_config(out[name], max_new_tokens=1)
    return out


def generation_config(settings: Settings, **fixed: Any) -> GenerationConfig:
    """The whole generation config of a decoding; what it leaves unset is switched off.

    Raises:
        InputError: If transformers refuses a setting.
    """
    try:
        for name, value in settings.items():
            if name in _MADE_OF and value != _NO_WARPERS[name]:
                _MADE_OF[name](value)
        config = GenerationConfig(**{**_NO_WARPERS, **settings, **fixed})
        if not config.do_sample:
            # Unused when the most probable token is taken, and transformers warns where they are set.
            config.temperature = config.top_p = config.top_k = config.typical_p = config.min_p = None
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        raise InputError(f"decoding settings {dict(settings)}: {' '.join(str(error).split())}") from error
    return config


def _parse_settings(word: str, text: str) -> dict[str, Any]:
    known = GenerationConfig().to_dict()
    out: dict[str, Any] = {}
    for part in text.split(","):
        setting, colon, value = part.partition(":")
        setting = setting.strip()
        if not colon or setting not in known:
            raise InputError(f"decoding {word!r}: {part!r} is not a generate() setting as setting:value")
        if setting in _FIXED:
            raise InputError(f"decoding {word!r}: {setting} is not a setting of a decoding, the study sets it")
        try:
            out[setting] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"decoding {word!r}: {value!r} is not a value") from error
        if isinstance(out[setting], int) and isinstance(_NO_WARPERS.get(setting), float):
            out[setting] = float(out[setting])
    return out
