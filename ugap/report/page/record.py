"""The records of a study besides its scores: `gap.json`, the settings of its parts, and the command in `gap.md`.

Design choices:

- This module alone checks the form of a record. Later code trusts it: every row has its fields, every
  figure is finite or null, and every name is text.
- Files are bounded before they are parsed: a record of a large study takes a few megabytes.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ugap.errors import InputError
from ugap.files import regular_file
from ugap.study.contrasts import DOMAIN, STAGE
from ugap.study.gap.run import VERSION

MOST_BYTES = 32 * 2**20
_MOST_SETTINGS = 2**20  # characters, as JSON
_DEEPEST = 32
_LARGEST = 1e300  # figures; sums of a few of them are finite
_MOST_COUNT = 2**53  # the largest whole number that the page's script holds

_FENCE = re.compile(r"`{3,999}")


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of `gap.json`: `version`, `settings`, `gaps` and `contrasts`; None where there is no such file.

    Raises:
        InputError: The file is damaged or of another version; the message names the field.
    """
    if not path.exists():
        return None
    record = _json(path)
    version: Any = record.get("version")
    if not _is_count(version) or not all(name in record for name in ("gaps", "contrasts", "settings")):
        raise InputError(f"{path}: not the record of a study")
    if version != VERSION:
        remedy = "install a newer ugap" if version > VERSION else "repeat its command with --resume"
        age = "a newer" if version > VERSION else "an older"
        raise InputError(f"{path}: made by {age} ugap (format {version}, this one reads {VERSION}); {remedy}")
    _check_settings(path, record["settings"])
    for table, check in (("gaps", _check_gap), ("contrasts", _check_contrast)):
        if not isinstance(record[table], list):
            raise InputError(f"{path}: {table}: not a list of rows")
        for number, row in enumerate(record[table]):
            where = f"{path}: {table}, row {number + 1}"
            if not isinstance(row, dict):
                raise InputError(f"{where}: not a row of a study's table")
            check(where, row)
    return record


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a study that has not ended; empty where there is no such file.

    Raises:
        InputError: The file is damaged; the message names the field.
    """
    if not path.exists():
        return {}
    settings = _json(path)
    _check_settings(path, settings)
    return settings


def read_command(path: Path) -> str | None:
    """The command in the last block of `gap.md`; None where there is no such file or block.

    Raises:
        InputError: The file is no text.
    """
    if not path.exists():
        return None
    text = _text(path).rstrip("\n")
    # The settings before it may hold the same heading, so the file is read from its end.
    fence = text[text.rfind("\n") + 1 :]
    if not _FENCE.fullmatch(fence):
        return None
    # The fence is longer than any run of backticks in the block, so the last heading that has it begins the block.
    heading = f"## Command\n\n{fence}sh\n"
    begin = text.rfind(heading)
    if begin < 0:
        return None
    return text[begin + len(heading) : -len(fence)].removesuffix("\n")


def _text(path: Path) -> str:
    content = regular_file(path)
    if content.stat().st_size > MOST_BYTES:
        raise InputError(f"{path}: {content.stat().st_size:,} bytes; a study's record has at most {MOST_BYTES:,}")
    try:
        return content.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_text(path))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: invalid JSON ({error})") from error
    except RecursionError as error:
        raise InputError(f"{path}: invalid JSON (nested too deeply)") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not the record of a study")
    if not _is_shallow(content, _DEEPEST):
        raise InputError(f"{path}: nested too deeply")
    return content


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    # Not isinstance: True is an int to Python.
    return type(value) is int and 0 <= value < _MOST_COUNT


def _is_figure(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and -_LARGEST < value < _LARGEST)


def _is_interval(value: Any) -> bool:
    if value is None or value == [None, None]:
        return True
    numbers = isinstance(value, list) and len(value) == 2 and None not in value and all(map(_is_figure, value))
    return numbers and value[0] <= value[1]


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


# The type of a field: a test, and the words of its error.
_Kind = tuple[Callable[[Any], bool], str]
_TEXT: _Kind = (_is_text, "text")
_COUNT: _Kind = (_is_count, "a whole number, 0 or more")
_FIGURE: _Kind = (_is_figure, "a finite number or null")
_INTERVAL: _Kind = (_is_interval, "a lower and an upper end, or null")

_GAP: Mapping[str, _Kind] = {
    **dict.fromkeys(("domain", "model", "prompting", "decoding", "scorer", "measure"), _TEXT),
    **dict.fromkeys(("n", "n_sources", "n_dropped"), _COUNT),
    **dict.fromkeys(("human", "model_value", "gap", "ratio"), _FIGURE),
    **dict.fromkeys(("effect_size", "p_value", "p_adjusted", "wasserstein"), _FIGURE),
    "ci95": _INTERVAL,
}
_CONTRAST: Mapping[str, _Kind] = {
    **dict.fromkeys(("a", "b", "stage_a", "stage_b", "prompting_a", "prompting_b"), _TEXT),
    **dict.fromkeys(("decoding", "scorer", "measure"), _TEXT),
    **dict.fromkeys(("gap_a", "gap_b", "difference", "p_value", "p_adjusted"), _FIGURE),
    "ci95": _INTERVAL,
    **dict.fromkeys(("n", "n_sources"), (_is_counts, "two whole numbers, 0 or more")),
}
# What the two sides of a contrast share.
_SHARED: Mapping[str, Mapping[str, _Kind]] = {DOMAIN: {"model": _TEXT}, STAGE: {"domain": _TEXT}}
# Settings that the report reads, where they are there; the others are shown.
_SETTINGS: Mapping[str, _Kind] = {
    "seed": _COUNT,
    "stages": (_is_names, "text by model"),
    "environment": (_is_mapping, "values by name"),
    "weight_hashes": (_is_names, "text by model"),
}


def _check(where: str, fields: Mapping[str, Any], kinds: Mapping[str, _Kind]) -> None:
    for name, (fits, words) in kinds.items():
        if name not in fields:
            raise InputError(f"{where}: {name} is missing")
        if not fits(fields[name]):
            raise InputError(f"{where}: {name} is {_shown(fields[name])}, not {words}")


def _check_gap(where: str, row: Mapping[str, Any]) -> None:
    _check(where, row, _GAP)


def _check_contrast(where: str, row: Mapping[str, Any]) -> None:
    contrast = row.get("contrast")
    if not isinstance(contrast, str) or contrast not in _SHARED:
        raise InputError(f"{where}: contrast is {_shown(contrast)}, not one of {', '.join(_SHARED)}")
    _check(where, row, {**_CONTRAST, **_SHARED[contrast]})


def _check_settings(path: Path, settings: Any) -> None:
    where = f"{path}: settings"
    if not isinstance(settings, dict):
        raise InputError(f"{where}: not values by name")
    if len(json.dumps(settings)) > _MOST_SETTINGS:
        raise InputError(f"{where}: more than {_MOST_SETTINGS:,} characters")
    _check(where, settings, {name: kind for name, kind in _SETTINGS.items() if settings.get(name) is not None})


def _is_shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_shallow(one, levels - 1) for one in inner)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]} ..."
