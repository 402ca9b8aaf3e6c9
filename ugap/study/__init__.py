"""The study of the gap: continuations generated or given, scored beside the human ones, resumable."""

from ugap.study.decodings import DECODINGS, STUDIED, parse_decodings
from ugap.study.measures import MEASURES
from ugap.study.study import StudyResult, StudySettings, run_study

__all__ = ["DECODINGS", "MEASURES", "STUDIED", "StudyResult", "StudySettings", "parse_decodings", "run_study"]
