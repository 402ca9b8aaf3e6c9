"""The study of the gap: continuations generated or given, scored beside the human ones, resumable.

The names below load their modules at first use (PEP 562): the names of decodings are known without torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ugap.study.decodings import parse_decodings
    from ugap.study.many import ManySettings, ModelEntry, run_many
    from ugap.study.many_contrasts import contrast_many, read_levels
    from ugap.study.measures import MEASURES
    from ugap.study.named import DECODINGS, STUDIED
    from ugap.study.study import StudyResult, StudySettings, run_study

__all__ = [
    "DECODINGS",
    "MEASURES",
    "STUDIED",
    "ManySettings",
    "ModelEntry",
    "StudyResult",
    "StudySettings",
    "contrast_many",
    "parse_decodings",
    "read_levels",
    "run_many",
    "run_study",
]

_HOME = {
    "DECODINGS": "named",
    "MEASURES": "measures",
    "STUDIED": "named",
    "ManySettings": "many",
    "ModelEntry": "many",
    "StudyResult": "study",
    "StudySettings": "study",
    "contrast_many": "many_contrasts",
    "parse_decodings": "decodings",
    "read_levels": "many_contrasts",
    "run_many": "many",
    "run_study": "study",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ugap.study.{_HOME[name]}"), name)
    globals()[name] = value
    return value
