"""The parameters of a human profile by kind, which `generate.py` reads: empty here, filled in an exported folder."""

from typing import Any

PARAMS: dict[str, dict[str, Any]] = {}
