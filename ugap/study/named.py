"""The decodings that have a name: plain data, so that a wrong name is refused without torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from ugap.errors import InputError

Settings = Mapping[str, Any]

DECODINGS: dict[str, Settings] = {
    "ancestral": {},
    "top-p-0.9": {"top_p": 0.9},
    "temperature-0.7": {"temperature": 0.7},
    "top-k-50": {"top_k": 50},
    "min-p-0.1": {"min_p": 0.1},
    "typical-p-0.95": {"typical_p": 0.95},
    "greedy": {"do_sample": False},
    "eta-0.0009": {"eta_cutoff": 0.0009},
    "top-h-0.4": {"top_h": 0.4},
    "ugap-creative": {"human_mode": "creative"},
    "ugap-balanced": {"human_mode": "balanced"},
    "ugap-own": {"human_weight": 1.0},
}

# The decodings of a study by default: the ways that most models are used.
STUDIED = ("ancestral", "top-p-0.9", "temperature-0.7", "top-k-50", "min-p-0.1", "typical-p-0.95", "greedy")

# What other texts of a study are called in the place of a decoding.
_TAKEN = ("human", "given")


def is_human(settings: Settings) -> bool:
    """Whether a decoding is the sampler at human uncertainty.

    Example:
        >>> is_human(DECODINGS["ugap-creative"]), is_human(DECODINGS["greedy"])
        (True, False)
    """
    return "human_mode" in settings or "human_weight" in settings


def check_names(words: Sequence[str]) -> None:
    """See that every word is a known decoding or `NAME=setting:value,...`, with no name twice.

    Raises:
        InputError: As said.

    Example:
        >>> check_names(["ancestral", "warm=temperature:1.1"])
        >>> check_names(["human=top_k:5"])
        Traceback (most recent call last):
            ...
        ugap.errors.InputError: decoding 'human=top_k:5': the name 'human' is taken
    """
    seen: set[str] = set()
    for word in words:
        name, custom, _ = word.partition("=")
        if not custom and name not in DECODINGS:
            raise InputError(
                f"unknown decoding {name!r}: choose of {', '.join(DECODINGS)}, or give NAME=setting:value,..."
            )
        if name in seen or not name or name in _TAKEN:
            raise InputError(f"decoding {word!r}: the name {name!r} is taken")
        seen.add(name)
