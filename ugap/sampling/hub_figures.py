"""The figures of a human profile by domain, for `generate.py` beside it: none here, those of a profile in an export."""

from typing import Any

FIGURES: dict[str, dict[str, Any]] = {}
