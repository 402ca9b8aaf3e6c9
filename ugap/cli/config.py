"""Read the flat YAML file of `--config`, and convert its values to the types of a command's options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ugap.errors import InputError, reading
from ugap.files import regular_file
from ugap.unicode import text_fault

# YAML aliases can make a small file stand for billions of values, and Python prints no integer of over 4,300 digits.
_MAX_BYTES, _MAX_VALUES, _MAX_BITS = 2**20, 100_000, 1024
_KINDS = {"int": "a whole number", "float": "a number", "truth": "yes or no"}
TRUTH_VALUES = {
    **dict.fromkeys(["yes", "true", "t", "y", "1"], True),
    **dict.fromkeys(["no", "false", "f", "n", "0"], False),
}


def truth(word: str) -> bool:
    """Read the value of a flag.

    Raises:
        argparse.ArgumentTypeError: The word is neither yes nor no.
    """
    if word.lower() not in TRUTH_VALUES:
        raise argparse.ArgumentTypeError(f"{word!r} is not yes or no")
    return TRUTH_VALUES[word.lower()]


def read_config(path: Path) -> dict[Any, Any]:
    """Read the options of a YAML file; a file of comments alone has none.

    Raises:
        InputError: The file cannot be read, is not YAML, or is not a mapping.
    """
    with reading(f"{path}: cannot be read"), open(regular_file(path), "rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise InputError(f"{path}: larger than {_MAX_BYTES // 2**20} MB, which no options are")
    config = _parse(path, content)
    _check_values(path, config)
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold options as `name: value`")
    return config


def _parse(path: Path, content: bytes) -> Any:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    with reading(f"{path}: not YAML"):  # such as a date that does not exist, or a number of 5,000 digits
        try:
            return yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            row = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            raise InputError(f"{path}: {row}not YAML: {error.problem}") from error
        except RecursionError as error:
            raise InputError(f"{path}: not YAML that can be read: it is nested too deeply") from error


def _check_values(path: Path, config: Any) -> None:
    """Refuse values that no option can hold, and aliases that expand without bound."""
    unseen, n_seen = [config], 0
    while unseen:
        value = unseen.pop()
        n_seen += 1
        if n_seen > _MAX_VALUES:
            raise InputError(f"{path}: more than {_MAX_VALUES:,} values, which no options are")
        if isinstance(value, dict):
            unseen += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            unseen += value
        elif isinstance(value, str) and (fault := text_fault(value)):
            raise InputError(f"{path}: a text with {fault}")
        elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise InputError(f"{path}: a whole number of more than {_MAX_BITS} bits")


def convert(action: argparse.Action, value: object) -> object:
    """Convert one YAML scalar with the type and the choices of an option, as a word of the command line would be.

    Raises:
        InputError: The value does not fit; the message begins with the option's name.
    """
    wrong = f"{action.dest}: {value!r}"
    if not isinstance(value, str | int | float):
        raise InputError(f"{wrong} is not one value")
    # YAML reads `1e3`, `no` and `2020-01-01` as other types, and their text cannot be restored.
    if action.type is str and not isinstance(value, str):
        raise InputError(f"{wrong} is not text: put it in quotes")
    assert callable(action.type)
    converter: Callable[[str], object] = action.type
    try:
        # As text, so that `1.5` for a whole number and `1` for a flag mean what they mean on the command line.
        converted = converter(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{wrong} is not {_KINDS.get(converter.__name__, 'a value that fits')}") from error
    if action.choices is not None and converted not in action.choices:
        raise InputError(f"{wrong} is none of {', '.join(map(str, action.choices))}")
    return converted
