"""The flat YAML file that `--config` names: reading it, and giving its values the types of a command's options."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ugap.errors import InputError

_KINDS = {"int": "a whole number", "float": "a number", "string_to_bool": "yes or no"}


def read_config(path: Path) -> dict[Any, Any]:
    """Read the options of a YAML file; a file of nothing but comments has none.

    Raises:
        InputError: The file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        row = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise InputError(f"{path}: {row}not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise InputError(f"{path}: must hold options as `name: value`")
    return config


def convert(action: argparse.Action, value: object) -> object:
    """Convert one YAML scalar with the type and the choices of an option, as a word of the command line would be.

    Raises:
        InputError: The value does not fit; the message begins with the option's name.
    """
    wrong = f"{action.dest}: {value!r}"
    if not isinstance(value, str | int | float):
        raise InputError(f"{wrong} is not one value")
    if action.type is str and not isinstance(value, str):
        raise InputError(f"{wrong} is not text: put it in quotes")
    assert callable(action.type)
    converter: Callable[[str], object] = action.type
    try:
        converted = converter(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{wrong} is not {_KINDS.get(converter.__name__, 'a value that fits')}") from error
    if action.choices is not None and converted not in action.choices:
        raise InputError(f"{wrong} is none of {', '.join(map(str, action.choices))}")
    return converted
