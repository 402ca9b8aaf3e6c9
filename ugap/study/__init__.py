"""The study of the gap: continuations generated or given, scored beside the human ones, resumable."""

from ugap.study.decodings import DECODINGS, STUDIED, parse_decodings
from ugap.study.many import ManySettings, ModelEntry, run_many
from ugap.study.many_contrasts import contrast_many, read_levels
from ugap.study.measures import MEASURES
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
