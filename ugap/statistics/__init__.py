"""Paired estimates of the gap with cluster-bootstrap intervals, contrasts of gaps, proportions, Holm's correction."""

from ugap.statistics.contrast import Contrast, contrast_independent, contrast_paired
from ugap.statistics.diversity import distinct_n, repetition
from ugap.statistics.gap import GapEstimate, paired_gap
from ugap.statistics.proportions import McNemar, mcnemar, wilson
from ugap.statistics.significance import holm

__all__ = [
    "Contrast",
    "GapEstimate",
    "McNemar",
    "contrast_independent",
    "contrast_paired",
    "distinct_n",
    "holm",
    "mcnemar",
    "paired_gap",
    "repetition",
    "wilson",
]
