"""Arrays to and from the types of JSON."""

from typing import Any

import numpy as np

from ugap.profile.calibration import FloatArray


def array(values: Any) -> FloatArray:
    """Nested lists of numbers as an array; None becomes NaN."""
    return np.array(values, dtype=np.float64)


def plain(values: FloatArray | float) -> Any:
    """Nested lists of numbers for JSON: whole numbers as integers, NaN as None."""
    found = np.asarray(values, dtype=np.float64)
    if found.ndim:
        return [plain(value) for value in found]
    number = float(found)
    if np.isnan(number):
        return None
    return int(number) if number.is_integer() else number
