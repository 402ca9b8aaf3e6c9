"""Measure how much less uncertain language models write than people do, token by token, and close the gap.

The names below load their modules at first use (PEP 562): `import ugap` and `ugap --help` start without torch.

Example:
    >>> import ugap
    >>> sorted(ugap.__all__)
    ['HumanEntropyLogitsProcessor', 'HumanProfile', 'Scorer', 'TokenScores', 'generate', 'load_model']
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ugap.models import load_model
    from ugap.profile import HumanProfile
    from ugap.sampling import HumanEntropyLogitsProcessor, generate
    from ugap.scoring import Scorer, TokenScores

__version__ = "0.1.0"
__all__ = ["HumanEntropyLogitsProcessor", "HumanProfile", "Scorer", "TokenScores", "generate", "load_model"]

_HOME = {
    "HumanEntropyLogitsProcessor": "ugap.sampling",
    "HumanProfile": "ugap.profile",
    "Scorer": "ugap.scoring",
    "TokenScores": "ugap.scoring",
    "generate": "ugap.sampling",
    "load_model": "ugap.models",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
