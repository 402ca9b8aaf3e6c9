"""Arrays to and from the types of JSON: what a file holds is checked here, before it is a figure of a profile."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

_LARGEST = 1e15  # counts of tokens are far below, and squares and sums of figures stay finite


def member(entry: Any, name: str) -> Any:
    """The value of a field of a JSON object.

    Raises:
        ValueError: `entry` is no object, or lacks the field.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"not an object with {name!r}")
    if name not in entry:
        raise ValueError(f"{name!r} is missing")
    return entry[name]


def array(values: Any, name: str) -> FloatArray:
    """Nested lists of numbers as an array; None becomes NaN.

    Args:
        values (`Any`): What a JSON document holds.
        name (`str`): Name of the field, for the error.

    Raises:
        ValueError: `values` is something else, a number is infinite, or lists beside each other differ in length.
    """
    fault = f"{name!r} is no list of finite numbers"
    try:
        found = np.array(values, dtype=object)
    except ValueError as error:  # some lists of different lengths; others are elements of the array
        raise ValueError(fault) from error
    if found.ndim == 0 or not all(_is_number(value) for value in found.flat):
        raise ValueError(fault)
    return found.astype(np.float64)


def number(value: Any, name: str) -> float:
    """A finite number as a float; None becomes NaN.

    Raises:
        ValueError: `value` is something else.
    """
    if not _is_number(value):
        raise ValueError(f"{name!r} is no finite number")
    return float("nan") if value is None else float(value)


def count(value: Any, name: str) -> int:
    """A whole number above 0.

    Raises:
        ValueError: `value` is something else.
    """
    if type(value) is not int or not 0 < value <= _LARGEST:
        raise ValueError(f"{name!r} is no whole number above 0")
    return value


def text(value: Any, name: str) -> str:
    """Text.

    Raises:
        ValueError: `value` is something else.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is no text")
    return value


def plain(values: FloatArray | float) -> Any:
    """Nested lists of numbers for JSON: whole numbers as integers, NaN as None."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim:
        return [plain(value) for value in found]
    number = float(found)
    if np.isnan(number):
        return None
    return int(number) if number.is_integer() else number


def _is_number(value: Any) -> bool:
    # NaN is not within its bounds: a file says null.
    return value is None or (type(value) in (int, float) and -_LARGEST <= value <= _LARGEST)
