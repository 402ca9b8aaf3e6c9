"""The figures of a human profile by domain, for `generate.py` beside it: none here, those of a profile in an export."""

from typing import Any

PARAMS: dict[str, dict[str, Any]] = {}
